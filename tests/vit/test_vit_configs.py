# SPDX-License-Identifier: Apache-2.0
"""The configs of DeiT, and the command lines on the digits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS

from lors_det.lors import StackedLayerNorm, count_parameters
from lors_det.vit import Top1Accuracy, ViTClassifier

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'configs' / 'deit'
CIFAR = ('deit-tiny_cifar100.py', 'lors-deit-tiny_cifar100.py')
DIGITS = ('deit-tiny_digits.py', 'lors-deit-tiny_digits.py')
#: Parameters of the encoder.
EXPECTED = {
    'deit-tiny_cifar100.py': 5_338_368,
    'lors-deit-tiny_cifar100.py': 2_536_704,
    'deit-tiny_digits.py': 199_936,
    'lors-deit-tiny_digits.py': 109_824,
}


@cache
def load(name: str) -> Config:
    return Config.fromfile(FOLDER / name)


def build(name: str) -> ViTClassifier:
    return MODELS.build(load(name).model)


def test_every_config_has_a_row() -> None:
    assert {path.name for path in FOLDER.rglob('*.py')} == set(EXPECTED)


@pytest.mark.parametrize('name', EXPECTED)
def test_model(name: str) -> None:
    model = build(name)
    assert count_parameters(model.encoder).total == EXPECTED[name]
    depth = 12 if name in CIFAR else 4
    for stack, falling in (
        (model.encoder.attention.qkv, False),
        (model.encoder.attention.proj, False),
        (model.encoder.ffn.fc1, True),
        (model.encoder.ffn.fc2, True),
    ):
        assert stack.num_layers == depth
        assert stack.config.mode == (
            'lors' if name.startswith('lors') else 'dense'
        )
        if stack.config.has_private:
            more = [2, 4, 6] if name in CIFAR else [4]
            rank = 32 if name in CIFAR else 8
            ranks = [rank] * (depth - len(more)) + [rank * k for k in more]
            found = [len(stack.private_A[str(i)]) for i in range(depth)]
            assert found == (ranks[::-1] if falling else ranks)


@pytest.mark.parametrize('name', CIFAR)
def test_deit_tiny(name: str) -> None:
    model, settings = build(name), load(name).model
    assert settings.num_heads == 3
    assert model.head.weight.shape == (100, 192)
    # One entry of the table for each of 8 x 8 patches: nothing is resized.
    assert model.embed.pos_embed.shape == (1, 65, 192)
    assert model.embed.proj.kernel_size == (4, 4)
    assert model.label_smoothing == 0.1
    assert (settings.mixup, settings.cutmix) == (0.8, 1.0)


@pytest.mark.parametrize('name', CIFAR)
def test_recipe(name: str) -> None:
    cfg = load(name)
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.train_dataloader.batch_size == 1024
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.optim_wrapper.optimizer == {
        'type': 'AdamW',
        'lr': 1e-3,
        'weight_decay': 0.05,
    }
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 5.0}
    warmup, cosine = cfg.param_scheduler
    assert (warmup.type, warmup.begin, warmup.end) == ('LinearLR', 0, 20)
    assert (cosine.type, cosine.begin, cosine.end) == (
        'CosineAnnealingLR', 20, 300,
    )  # fmt: skip
    assert warmup.by_epoch
    assert cosine.by_epoch
    train, test = cfg.train_dataloader.dataset, cfg.test_dataloader.dataset
    assert train.type == test.type == 'CIFAR100Images'
    assert (train.split, test.split) == ('train', 'test')
    assert train.transforms == [{'type': 'RandomHorizontalFlip', 'p': 0.5}]
    assert 'transforms' not in test


@pytest.mark.parametrize('name', EXPECTED)
def test_dense_and_lors_differ_in_their_stacks_only(name: str) -> None:
    twin = load(name.removeprefix('lors-')).to_dict()
    config = load(name).to_dict()
    config['model']['stacks'] = twin['model']['stacks'] = None
    assert config == twin


@pytest.mark.parametrize('name', EXPECTED)
def test_weight_decay(name: str) -> None:
    """On the matrices of stacks, patches and head; on nothing else."""
    model = build(name)
    wrapper = build_optim_wrapper(model, load(name).optim_wrapper)
    decay = {
        id(parameter): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for parameter in group['params']
    }
    rates = {group['lr'] for group in wrapper.optimizer.param_groups}
    assert rates == {load(name).optim_wrapper.optimizer.lr}
    norms = {
        id(parameter)
        for module in [*model.modules()]
        if isinstance(module, StackedLayerNorm)
        for parameter in module.parameters()
    } | {id(parameter) for parameter in model.norm.parameters()}
    stack_biases = 0
    for key, parameter in model.named_parameters():
        free = (
            id(parameter) in norms
            or re.search(r'(^|\.)bias(\.\d+)?$', key)
            or key in ('embed.cls_token', 'embed.pos_embed')
        )
        stack_biases += bool(re.search(r'\.bias\.\d+$', key))
        assert decay.pop(id(parameter)) == (0 if free else 0.05), key
    assert not decay
    assert stack_biases == 4 * model.encoder.num_layers


@pytest.mark.parametrize('name', EXPECTED)
def test_dumped_and_reloaded(name: str, tmp_path: Path) -> None:
    cfg = load(name)
    cfg.dump(tmp_path / 'config.py')
    again = Config.fromfile(tmp_path / 'config.py')
    assert again.to_dict() == cfg.to_dict()


def test_digits_are_normalised() -> None:
    """The numbers in the config are those of the training part."""
    cfg = load(DIGITS[0])
    images = DATASETS.build(cfg.train_dataloader.dataset).images.float()
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == pytest.approx([float(images.mean())], abs=0.01)
    assert preprocessor.std == pytest.approx([float(images.std())], abs=0.01)
    assert isinstance(METRICS.build(cfg.test_evaluator), Top1Accuracy)


def run(*commands: list[str]) -> list[str]:
    """Run scripts from the repository's root, in one process; the outputs."""
    code = (
        'import json, runpy, sys\n'
        'for command in json.loads(sys.argv[1]):\n'
        '    sys.argv = command\n'
        '    runpy.run_path(command[0], run_name="__main__")\n'
        '    print("== end ==", flush=True)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, json.dumps(commands)],
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return result.stdout.split('== end ==')[:-1]


@pytest.mark.slow
def test_train_and_test(tmp_path: Path) -> None:
    """Through the same command lines as the detectors."""
    config = f'configs/deit/{DIGITS[1]}'
    options = ['--cfg-options', 'model.embed_dims=32', 'model.num_heads=2']
    options += ['model.feedforward_channels=64', 'model.num_layers=2']
    for stack in ('attention', 'ffn'):
        options.append(f'model.stacks.{stack}.num_param_groups=1')
    short = ['train_cfg.max_epochs=3', 'train_cfg.val_interval=3']
    short += ['default_hooks.checkpoint.interval=3', 'param_scheduler=[]']
    folders = [str(tmp_path / name) for name in ('train', 'test')]
    checkpoint = str(tmp_path / 'train' / 'epoch_3.pth')
    outputs = run(
        ['tools/train.py', config, '--work-dir', folders[0], *options, *short],
        [
            'tools/test.py', config, checkpoint, '--work-dir', folders[1],
            *options,
        ],
    )  # fmt: skip
    pattern = r'Epoch\(train\) +\[3\]\[80/84\].* loss: \d'
    assert re.search(pattern, outputs[0])
    trained, tested = (
        re.search(r'accuracy/top1: ([\d.]+)', output) for output in outputs
    )
    assert trained
    assert tested
    assert tested[1] == trained[1]
    assert float(tested[1]) > 20  # of 10 classes: it has learned something
    (scalars,) = (tmp_path / 'test').glob('*/*.json')
    line = json.loads(scalars.read_text().splitlines()[0])
    assert line['accuracy/top1'] == pytest.approx(float(tested[1]), abs=1e-4)
