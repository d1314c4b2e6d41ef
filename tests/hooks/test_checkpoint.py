# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toy_runs import toy_run
from mmengine.hooks import Hook

from lors_det.errors import UsageError, checkpoints
from lors_det.hooks.checkpoint import (
    damage,
    newest_checkpoint,
    write_whole,
)
from lors_det.safe_load import load_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / 'iter_1.pth'
    state = {'meta': {'iter': 1}, 'weight': torch.randn(9), 'n': [1, 2.5]}
    torch.save(state, path)
    return path


def test_every_flipped_bit_is_found_or_harmless(checkpoint: Path) -> None:
    assert damage(checkpoint) is None
    whole, expected = checkpoint.read_bytes(), torch.load(checkpoint)
    chance = random.Random(0)
    found = 0
    for _ in range(250):
        content = bytearray(whole)
        content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        checkpoint.write_bytes(content)
        if damage(checkpoint) is not None:
            found += 1
            continue
        try:
            loaded = load_checkpoint(checkpoint)
        except UsageError:
            continue  # torch reads what zipfile does not need
        assert str(loaded) == str(expected)
        assert torch.equal(loaded['weight'], expected['weight'])
    assert found > 100


def test_every_cut_is_found(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for length in range(0, len(whole), 97):
        checkpoint.write_bytes(whole[:length])
        assert damage(checkpoint)
        with pytest.raises(UsageError, match=r'iter_1\.pth'):
            load_checkpoint(checkpoint)


def test_a_wrong_checksum_is_refused_by_name(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    weight = torch.load(checkpoint)['weight'].numpy().tobytes()
    content[content.index(weight)] ^= 1
    checkpoint.write_bytes(content)
    torch.load(checkpoint)  # torch itself does not see it
    with pytest.raises(
        UsageError, match='is damaged or cut off: wrong checksum of'
    ):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_an_interrupted_write_leaves_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'file'
    write_whole(b'old', path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        UsageError,
        match=r'file cannot be written: No space left on device; earlier',
    ):
        write_whole(b'new', path)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def make_run(checkpoint: Path, *names: str) -> list[Path]:
    """Checkpoints, each a second newer than the one before."""
    paths = [checkpoint.with_name(name) for name in names]
    for second, path in enumerate(paths):
        shutil.copy(checkpoint, path)
        os.utime(path, (second, second))
    checkpoint.unlink()
    return paths


def test_the_newest_that_is_whole(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint.parent
    a, b, c, best, other = make_run(
        checkpoint,
        'iter_9.pth', 'iter_10.pth', 'epoch_2.pth', 'best_x_iter_9.pth',
        'weights.pth',
    )  # fmt: skip
    assert newest_checkpoint(str(folder)) == str(c)
    c.write_bytes(c.read_bytes()[:-10])
    assert newest_checkpoint(str(folder)) == str(b)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'warning: {c} is damaged (')
    # One of another name, in another folder, when the run says so.
    elsewhere = folder / 'elsewhere' / 'mine.pth'
    elsewhere.parent.mkdir()
    shutil.copy(b, elsewhere)
    (folder / 'last_checkpoint').write_text(str(elsewhere))
    assert newest_checkpoint(str(folder)) == str(elsewhere)
    elsewhere.unlink()
    assert newest_checkpoint(str(folder)) == str(b)
    # Those of earlier launches do not count.
    assert newest_checkpoint(str(folder), since=10**9) == str(b)
    b.unlink()
    assert newest_checkpoint(str(folder)) == str(a)
    capsys.readouterr()
    with pytest.raises(
        UsageError, match=r'no checkpoint is whole \(1 are damaged\)'
    ):
        newest_checkpoint(str(folder), since=10**9)
    for path in (a, c):
        path.unlink()
    assert newest_checkpoint(str(folder)) is None
    assert best.exists()
    assert other.exists()


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the disk be full when a file of this name is written."""
    write = checkpoints.write_whole

    def write_or_fail(content: bytes, path: str | Path) -> None:
        if Path(path).name == name:
            raise UsageError('full')
        write(content, path)

    monkeypatch.setattr(checkpoints, 'write_whole', write_or_fail)


def test_old_ones_go_when_the_new_one_is_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = {'max_keep_ckpts': 2}
    (tmp_path / 'iter_3.pth.part').write_bytes(b'of a killed run')
    toy_run(tmp_path / 'whole', checkpoint=keep)
    found = {path.name for path in (tmp_path / 'whole').glob('*.pth*')}
    assert found == {'iter_11.pth', 'iter_12.pth'}
    fail_at(monkeypatch, 'iter_5.pth')
    (tmp_path / 'iter_3.pth.part').write_bytes(b'of a killed run')
    with pytest.raises(UsageError, match='full'):
        toy_run(tmp_path, checkpoint=keep)
    found = {path.name for path in tmp_path.glob('*.pth*')}
    assert found == {'iter_3.pth', 'iter_4.pth'}
    last = (tmp_path / 'last_checkpoint').read_text()
    assert last == str(tmp_path / 'iter_4.pth')
    assert not damage(last)


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
