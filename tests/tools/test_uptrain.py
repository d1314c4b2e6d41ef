# SPDX-License-Identifier: Apache-2.0
"""From a dense checkpoint to LORS: tools/uptrain.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_lines import ROOT, run_here
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor

from lors_det.cli.uptrain import build_dense
from lors_det.safe_load import load_checkpoint

CONFIG = 'tests/helpers/soak_config.py'


def build(config: Path, **decoder: Any) -> Any:
    """A detector with random weights, none of them zero."""
    cfg = Config.fromfile(ROOT / config)
    cfg.model.decoder.update(decoder)
    torch.manual_seed(0)
    dense = build_dense(cfg)
    for p in dense.decoder.parameters():
        p.data += torch.randn_like(p) * 0.05
    return dense


def save(path: Path, **decoder: Any) -> Path:
    """Write a checkpoint of the dense counterpart."""
    state = build(Path(CONFIG), **decoder).state_dict()
    meta = {'dataset_meta': {'classes': ('cell',)}, 'iter': 7}
    torch.save({'state_dict': state, 'meta': meta}, path)
    return path


@pytest.fixture(scope='module')
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp('dense') / 'dense.pth')


def uptrain(*arguments: str | Path) -> None:
    run_here('tools/uptrain.py', *arguments)


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.decoder.parameters())


def factorised(out: Path) -> Any:
    """What fine-tuning starts from, loaded strictly."""
    cfg = Config.fromfile(out / 'lors.py')
    assert cfg.load_from == str(out / 'lors.pth')
    assert cfg.train_cfg.max_iters == 40  # of CONFIG
    checkpoint = load_checkpoint(cfg.load_from)
    assert checkpoint['meta'] == {'dataset_meta': {'classes': ('cell',)}}
    model = MODELS.build(cfg.model)
    model.load_state_dict(checkpoint['state_dict'])
    return model


def outputs(model: Any) -> Tensor:
    torch.manual_seed(1)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, boxes = model.eval()(images, mode='tensor')
    return torch.cat([logits, boxes / 64], -1)


def test_the_given_ranks_and_allocated_ones(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {}
    for name, options in {
        'given': ['--given', '--images', '4'],
        'weights': ['--given', '--images', '0'],
        'allocated': ['--images', '4', '--budget', '60000'],
    }.items():
        uptrain(dense, CONFIG, '--out', tmp_path / name, *options)
        models[name] = factorised(tmp_path / name)
        text = capsys.readouterr().out
        counts = re.findall(r'ranks: ([\d,]+) parameters', text)
        count = int(counts[-1].replace(',', ''))
        assert count == parameters(models[name])
        assert f'python tools/train.py {tmp_path / name}/lors.py' in text
        assert text.count('mixing.out_proj') == len(counts)
    sizes = {name: parameters(model) for name, model in models.items()}
    cfg = Config.fromfile(ROOT / CONFIG)
    assert sizes['given'] == parameters(MODELS.build(cfg.model))
    assert 0.9 * 60000 < sizes['allocated'] <= 60000
    # What was made small where images are: the error of what comes out.
    expected = outputs(build(Path(CONFIG)))
    errors = {
        name: float((outputs(model) - expected).norm())
        for name, model in models.items()
    }
    assert errors['given'] < errors['weights']


BAD = [
    (
        ['DENSE', CONFIG, '--budget', '99'],
        r'--budget 99: expected at least \d+, the decoder with the lowest',
    ),
    (['DENSE', CONFIG, '--images', '-1'], '--images -1: expected 0 or more'),
    (
        ['DENSE', 'configs/adamixer/adamixer_r50_1x_coco.py'],
        'model.decoder.stacks has dense weights only: expected the config of',
    ),
    (
        ['DENSE', 'configs/deit/deit-tiny_digits.py'],
        "model.type='ViTClassifier': expected 'AdaMixer'",
    ),
    (['2 stages', CONFIG], "holds mode 'dense', 2 layers; the model was buil"),
    (['16 points', CONFIG], 'another shape: '),
]


@pytest.mark.parametrize(('arguments', 'message'), BAD)
def test_refused_in_one_line(
    arguments: list[str], message: str, dense: Path, tmp_path: Path
) -> None:
    files = {
        'DENSE': dense,
        '2 stages': tmp_path / 'shallow.pth',
        '16 points': tmp_path / 'wide.pth',
    }
    if arguments[0] == '2 stages':
        save(files['2 stages'], num_stages=2)
    if arguments[0] == '16 points':
        save(files['16 points'], feedforward_channels=32)
    named = [files.get(each, each) for each in arguments]
    with pytest.raises(SystemExit, match=message) as caught:
        uptrain(*named, '--out', tmp_path / 'out')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_nothing_is_written_over(dense: Path, tmp_path: Path) -> None:
    (tmp_path / 'lors.pth').write_text('a result')
    with pytest.raises(SystemExit, match='is there already; name another'):
        uptrain(dense, CONFIG, '--out', tmp_path)
    assert (tmp_path / 'lors.pth').read_text() == 'a result'
