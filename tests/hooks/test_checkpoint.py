# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy_runs import toy_run, toy_runner
from mmengine.hooks import Hook
from torch import nn

from lors_det.errors import UsageError
from lors_det.files import atomic_write, find_damage
from lors_det.hooks import checkpoint as checkpoints
from lors_det.hooks.checkpoint import (
    checkpoint_folder,
    latest_checkpoint,
    load_strictly,
    set_aside_checkpoints,
)
from lors_det.safe_load import load_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / 'iter_1.pth'
    state = {'meta': {'iter': 1}, 'weight': torch.randn(9), 'n': [1, 2.5]}
    torch.save(state, path)
    return path


def test_all_damage_is_found_or_harmless(checkpoint: Path) -> None:
    assert find_damage(checkpoint) is None
    whole, expected = checkpoint.read_bytes(), torch.load(checkpoint)
    chance = random.Random(0)
    found = 0
    for _ in range(250):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        checkpoint.write_bytes(content)
        try:
            loaded = load_checkpoint(checkpoint)
        except UsageError:
            found += find_damage(checkpoint) is not None
            continue
        assert str(loaded) == str(expected)
        assert torch.equal(loaded['weight'], expected['weight'])
    assert found > 100
    for length in range(0, len(whole), 97):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r'iter_1\.pth'):
            load_checkpoint(checkpoint)
        with pytest.raises(UsageError, match='no checkpoint is whole'):
            latest_checkpoint(str(checkpoint.parent))


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_an_interrupted_write_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'file'
    atomic_write(path, b'old')

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        UsageError, match='file cannot be written: No space left on device'
    ):
        atomic_write(path, b'new')
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def write(folder: Path, **iterations: int) -> list[Path]:
    """Write checkpoints by name and iteration, the last with an old date."""
    paths = []
    for number, (name, iteration) in enumerate(iterations.items()):
        path = folder / f'{name}.pth'
        torch.save({'meta': {'iter': iteration}, 'x': torch.ones(9)}, path)
        os.utime(path, (10 - number, 10 - number))
        paths.append(path)
    return paths


def test_the_highest_iteration_that_is_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    assert latest_checkpoint(folder) is None
    nine, ten, epoch, best = write(
        tmp_path, iter_9=9, iter_10=10, epoch_2=12, best_x_iter_99=99
    )
    torch.save({'state_dict': {}}, tmp_path / 'weights.pth')
    # By what it holds, not by date or name.
    assert latest_checkpoint(folder) == str(epoch)
    # A changed bit is reported, and so is a missing end.
    content = bytearray(epoch.read_bytes())
    content[content.index(torch.ones(9).numpy().tobytes())] ^= 1
    for spoilt in (content, content[:-10], bytes(len(content))):
        epoch.write_bytes(spoilt)
        assert latest_checkpoint(folder) == str(ten)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f'warning: {epoch} is damaged (')
    epoch.unlink()
    # Only what this launch has written.
    os.utime(nine, (20, 20))
    assert latest_checkpoint(folder, since=15 * 10**9) == str(nine)
    assert latest_checkpoint(folder, since=25 * 10**9) is None
    nine.write_bytes(b'PK')
    (tmp_path / 'iter_8.pth').symlink_to('nowhere')
    ten.unlink()
    with pytest.raises(
        UsageError, match=r'no checkpoint is whole \(1 are damaged\)'
    ):
        latest_checkpoint(folder)
    assert best.exists()


def test_a_folder_of_its_own_for_checkpoints() -> None:
    cfg: dict[str, Any] = {'work_dir': 'work_dirs/lors'}
    assert checkpoint_folder(cfg) == 'work_dirs/lors'
    cfg['default_hooks'] = {'checkpoint': {'out_dir': '/big'}}
    assert checkpoint_folder(cfg) == '/big/lors'


def test_an_overwritten_run_is_not_found_again(tmp_path: Path) -> None:
    paths = write(tmp_path, iter_3=3, epoch_1=6, best_x_iter_3=3)
    with pytest.raises(UsageError, match=r'^--overwrite: load_from=.*iter_3'):
        set_aside_checkpoints(str(tmp_path), needed=str(paths[0]))
    assert all(path.exists() for path in paths)
    set_aside_checkpoints(str(tmp_path), needed='elsewhere.pth')
    assert latest_checkpoint(str(tmp_path)) is None
    assert {p.name for p in tmp_path.iterdir()} == {
        'iter_3.pth.old', 'epoch_1.pth.old', 'best_x_iter_3.pth.old',
    }  # fmt: skip


def test_another_branch_of_a_run_is_not_found_again(tmp_path: Path) -> None:
    """Resumed from 6 and killed at 7, it is not at 12."""

    class Kill(Hook):
        def after_train_iter(self, runner: Any, **_: Any) -> None:
            raise KeyboardInterrupt

    toy_run(tmp_path)
    sixth = str(tmp_path / 'iter_6.pth')
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path, hooks=[Kill()], resume=True, load_from=sixth)
    assert latest_checkpoint(str(tmp_path)) == sixth


FITS = {'weight': torch.ones(1, 4), 'bias': torch.ones(1)}
NAN = {**FITS, 'bias': torch.full((1,), math.nan)}
RUN = {'epoch': 0, 'iter': 3}
ALL = 'resume test load_from'
NO_RUN = 'holds weights, but not the state of a run'


@pytest.mark.parametrize('purpose', ALL.split())
@pytest.mark.parametrize(
    ('state', 'meta', 'refused', 'said'),
    [
        (FITS, RUN, '', ''),
        ({f'module.{k}': v for k, v in FITS.items()}, RUN, '', ''),
        ({**FITS, 'more': torch.ones(1)}, RUN, '', 'not used: 1 (more)'),
        (NAN, RUN, '', 'weights that are not finite: 1 (bias)'),
        ({}, RUN, ALL, 'none of its 0 weights fits'),
        ([], RUN, ALL, 'none of its 0 weights fits'),
        ({'other.weight': torch.ones(1)}, RUN, ALL,
         'fits the model, which has 2 (weight, bias)'),
        ({'weight': torch.ones(1, 4)}, RUN, 'resume test',
         'lacks weights of the model, or has them in another shape: 1 (bias)'),
        ({**FITS, 'weight': torch.ones(1, 3)}, RUN, 'resume test',
         'in another shape: 1 (weight)'),
        (FITS, {}, 'resume', NO_RUN),
        (FITS, {'epoch': 'x', 'iter': -1}, 'resume', NO_RUN),
    ],
)  # fmt: skip
def test_what_is_loaded_has_to_fit(
    state: dict[str, Any],
    meta: dict[str, Any],
    refused: str,
    said: str,
    purpose: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(checkpoints, '_warn', lines.append)
    model = nn.Linear(4, 1)
    checkpoint = {'state_dict': state, 'meta': meta}
    if purpose in refused.split():
        with pytest.raises(UsageError) as caught:
            load_strictly(model, checkpoint, 'a.pth', purpose)
        lines = [str(caught.value)]
    else:
        load_strictly(model, checkpoint, 'a.pth', purpose)
        assert torch.equal(model.weight, FITS['weight']) == (
            said != 'in another shape: 1 (weight)'
        )
        said = '' if said == NO_RUN else said
    assert len(lines) == bool(said)
    for line in lines:
        assert said in line
        assert 'a.pth' in line
        assert '\n' not in line


def test_a_run_knows_what_it_loads_for(tmp_path: Path) -> None:
    path = tmp_path / 'a.pth'
    state = {'layer.1.weight': torch.ones(1, 4)}
    torch.save({'state_dict': state, 'meta': RUN}, path)
    toy_run(tmp_path / 'begun', load_from=str(path))
    for act in (
        lambda: toy_run(tmp_path / 'a', load_from=str(path), resume=True),
        lambda: toy_runner(tmp_path, custom_hooks=[]).load_checkpoint(
            str(path)
        ),
    ):
        with pytest.raises(UsageError, match=r'1 \(layer\.1\.bias\)'):
            act()


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when a file of this name is written."""

    def write_or_fail(path: str | Path, content: bytes) -> None:
        if Path(path).name == name:
            raise UsageError('full')
        atomic_write(path, content)

    monkeypatch.setattr(checkpoints, 'atomic_write', write_or_fail)


def test_old_ones_go_when_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {'max_keep_ckpts': 2}
    (tmp_path / 'iter_3.pth.part').write_bytes(b'of a killed run')
    toy_run(tmp_path / 'whole', checkpoint=keep)
    found = {path.name for path in (tmp_path / 'whole').glob('*.pth*')}
    assert found == {'iter_11.pth', 'iter_12.pth'}
    fail_at(monkeypatch, 'iter_5.pth')
    with pytest.raises(UsageError, match='full'):
        toy_run(tmp_path, checkpoint=keep)
    found = {path.name for path in tmp_path.glob('*.pth*')}
    assert found == {'iter_3.pth', 'iter_4.pth'}
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / 'iter_4.pth')


class Validate(Hook):
    """Results as from validation, after each iteration."""

    priority = 'LOWEST'

    def __init__(self, *results: float) -> None:
        self.results = iter(results)

    def after_train_iter(self, runner: Any, **_: Any) -> None:
        (hook,) = (h for h in runner.hooks if hasattr(h, 'save_best'))
        hook._save_best_checkpoint(
            runner, {'acc': next(self.results, 0), 'mAP': 1}
        )


@pytest.mark.parametrize('save_best', ['acc', ['acc', 'mAP']])
def test_the_best_goes_when_the_better_one_is_safe(
    save_best: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {'checkpoint': {'save_best': save_best}}
    whole = tmp_path / 'whole'
    toy_run(whole, hooks=[Validate(1, 0, 3, 2)], **settings)
    assert [p.name for p in whole.glob('best_acc*')] == ['best_acc_iter_2.pth']
    fail_at(monkeypatch, 'best_acc_iter_2.pth')
    with pytest.raises(UsageError, match='full'):
        toy_run(tmp_path, hooks=[Validate(1, 0, 3, 2)], **settings)
    assert [p.name for p in tmp_path.glob('best_acc*')] == [
        'best_acc_iter_0.pth'
    ]
