# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_lines import run_here
from helpers.official_states import official_state
from torch import Tensor

from lors_det.safe_load import load_checkpoint

CONFIG = r'(?m)^model ?= ?dict\('


class Code:
    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trap),)


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line, in this process; gives its output or its error."""

    def run(*arguments: str | Path) -> str:
        try:
            run_here('tools/convert_checkpoint.py', *arguments)
        except SystemExit as error:
            return str(error.code)
        return capsys.readouterr().out

    return run


def mmcv_checkpoint(state: dict[str, Tensor], **entries: Any) -> dict:
    """As mmcv 1.x writes it in a distributed run."""
    return {
        'meta': {'CLASSES': ('cat', 'dog'), 'epoch': 12, 'config': 'x = 1'},
        'state_dict': {f'module.{k}': v for k, v in state.items()},
        'optimizer': {'state': {}, 'param_groups': []},
        **entries,
    }


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path)['state_dict']


@pytest.mark.parametrize(
    ('release', 'ending'), [('LORS', 'pth'), ('AdaMixer', 'safetensors')]
)
def test_there_and_back(
    tmp_path: Path, convert: Any, release: str, ending: str
) -> None:
    state = official_state(release)
    source, ours, back = (
        tmp_path / name
        for name in ('official.pth', f'ours.{ending}', f'back.{ending}')
    )
    torch.save(mmcv_checkpoint(state), source)
    text = convert(source, ours)
    assert f'# {release}, ResNet 18, 3 stages, 7 queries, 5 classes' in text
    assert '# - optimizer: not converted' in text
    assert re.search(CONFIG, text)
    meta = load_checkpoint(ours)['meta']
    assert list(meta) == ['dataset_meta']
    assert list(meta['dataset_meta']['classes']) == ['cat', 'dog']
    assert not re.search(CONFIG, convert(ours, back, '--to-official'))
    found = weights(back)
    assert sorted(found) == sorted(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert list(load_checkpoint(back)['meta']['CLASSES']) == ['cat', 'dog']


def test_refused(tmp_path: Path, convert: Any) -> None:
    good, bad = tmp_path / 'good.pth', tmp_path / 'bad.pth'
    target, trap = tmp_path / 'target.pth', tmp_path / 'trap'
    state = official_state('AdaMixer')
    torch.save(mmcv_checkpoint(state), good)

    torch.save(mmcv_checkpoint(state, hooks=Code(trap)), bad)
    assert 'wants to run code' in convert(bad, target)
    assert not trap.exists()
    bad.write_bytes(good.read_bytes()[:5000])
    assert 'bad.pth is damaged or cut off' in convert(bad, target)
    torch.save({'state_dict': {'bbox_head.fc.weight': torch.ones(1)}}, bad)
    assert 'a checkpoint of another architecture' in convert(bad, target)
    assert 'nowhere.pth does not exist' in convert('nowhere.pth', target)
    assert 'DST target.npz: expected a name' in convert(good, 'target.npz')
    assert not target.exists()

    convert(good, target)
    before = target.read_bytes()
    assert 'is there already' in convert(good, target)
    assert 'this project already' in convert(target, target, '--overwrite')
    assert target.read_bytes() == before
    assert 'written' in convert(good, target, '--overwrite')


def test_averaged_weights_of_a_trusted_file(
    tmp_path: Path, convert: Any
) -> None:
    state = {
        **official_state('AdaMixer'),
        'ema_neck_gn_out_weight': torch.full((32,), 7.0),
    }
    source, trap = tmp_path / 'official.pth', tmp_path / 'trap'
    torch.save(mmcv_checkpoint(state, hooks=Code(trap)), source)
    ours = tmp_path / 'ours.pth'
    text = convert(source, ours, '--trust')
    assert '1 averaged tensors (EMA): not converted' in text
    assert trap.exists()
    plain = weights(ours)['neck.norm.weight']
    assert torch.equal(plain, state['neck.gn_out.weight'])
    trap.rmdir()
    convert(source, ours, '--trust', '--ema', '--overwrite')
    assert weights(ours)['neck.norm.weight'].eq(7).all()
