# SPDX-License-Identifier: Apache-2.0
"""The configs of DeiT, and the command lines on the digits."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pytest
from helpers.command_lines import run_here
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS
from torch.nn import LayerNorm

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
    # One entry for each patch: nothing is interpolated.
    assert model.embed.pos_embed.shape[1] == (65 if name in CIFAR else 17)
    depth = 12 if name in CIFAR else 4
    more, rank = ([2, 4, 6], 32) if name in CIFAR else ([4], 8)
    ranks = [rank] * (depth - len(more)) + [rank * k for k in more]
    for stack, expected in (
        (model.encoder.attention.qkv, ranks),
        (model.encoder.attention.proj, ranks),
        (model.encoder.ffn.fc1, ranks[::-1]),
        (model.encoder.ffn.fc2, ranks[::-1]),
    ):
        assert stack.num_layers == depth
        lors = name.startswith('lors')
        assert stack.config.mode == ('lors' if lors else 'dense')
        factors = stack.private_A
        found = [len(factors[str(i)]) for i in range(len(factors))]
        assert found == (expected if lors else [])


@pytest.mark.parametrize('name', CIFAR)
def test_learning_rate(name: str) -> None:
    """20 epochs of warm-up from 1e-6, then cosine to 1e-5 at epoch 300."""
    cfg = load(name)
    warm_up, cosine = cfg.param_scheduler
    assert warm_up.by_epoch
    assert cosine.by_epoch
    assert cfg.optim_wrapper.optimizer.lr * warm_up.start_factor == 1e-6
    assert (warm_up.begin, warm_up.end) == (0, 20)
    assert (cosine.begin, cosine.end) == (20, cfg.train_cfg.max_epochs)
    assert cfg.train_dataloader.batch_size == 1024


@pytest.mark.parametrize('name', EXPECTED)
def test_dense_and_lors_differ_in_their_stacks_only(name: str) -> None:
    dense = load(name.removeprefix('lors-')).to_dict()
    config = load(name).to_dict()
    config['model']['stacks'] = dense['model']['stacks'] = None
    assert config == dense


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
        for module in model.modules()
        if isinstance(module, (StackedLayerNorm, LayerNorm))
        for parameter in module.parameters()
    }
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


def test_digits_are_normalised() -> None:
    """The numbers in the config are those of the training part."""
    cfg = load(DIGITS[0])
    images = DATASETS.build(cfg.train_dataloader.dataset).images.float()
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == pytest.approx([float(images.mean())], abs=0.01)
    assert preprocessor.std == pytest.approx([float(images.std())], abs=0.01)
    assert isinstance(METRICS.build(cfg.test_evaluator), Top1Accuracy)


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
    checkpoint = tmp_path / 'train' / 'epoch_3.pth'
    outputs = []
    for tool, *arguments in (
        ('train', *options, *short),
        ('test', checkpoint, *options),
    ):
        folder = tmp_path / tool
        run_here(
            f'tools/{tool}.py',
            config,
            *arguments,
            f'experiment_name=deit-{tool}',  # mmengine keeps loggers by it
            f'work_dir={folder}',
        )
        (log,) = folder.glob('*/*.log')
        outputs.append(log.read_text())
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
