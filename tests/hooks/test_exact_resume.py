# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_lines import run_tool
from helpers.toy_runs import LOOPS, toy_run
from mmengine.hooks import Hook
from mmengine.runner import loops


def resume(
    first: Path, iteration: int, work_dir: Path, **settings: Any
) -> tuple[Any, dict[int, float]]:
    return toy_run(
        work_dir,
        resume=True,
        load_from=str(first / f'iter_{iteration}.pth'),
        **settings,
    )


def assert_same_end(one: Path, other: Path) -> None:
    ends = [
        torch.load(folder / 'iter_12.pth', weights_only=False)
        for folder in (one, other)
    ]
    for key in ('state_dict', 'ema_state_dict', 'optimizer'):
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=0, atol=0)


@pytest.mark.parametrize('loop', LOOPS)
@pytest.mark.parametrize(
    ('workers', 'points'), [(0, (1, 4, 6, 8, 11, 12)), (2, (3, 6))]
)
def test_resuming_is_exact(
    loop: str,
    workers: int,
    points: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops.time, 'sleep', lambda _: None)
    settings: dict[str, Any] = {'loop': loop, 'workers': workers}
    _, whole = toy_run(tmp_path / 'whole', **settings)
    assert len(set(whole.values())) == 12
    for point in points:
        folder = tmp_path / str(point)
        runner, rest = resume(tmp_path / 'whole', point, folder, **settings)
        assert rest == {i: whole[i] for i in range(point + 1, 13)}
        assert runner.iter == 12
        if rest:
            assert_same_end(tmp_path / 'whole', folder)
        # Batches of three that were done are not even loaded.
        loaded = runner.train_dataloader.dataset.loaded
        assert loaded <= 3 * (12 - point)


def test_workers_change_nothing(tmp_path: Path) -> None:
    """A batch's random state does not depend on the process that loads it."""
    _, none = toy_run(tmp_path / 'none')
    _, two = toy_run(tmp_path / 'two', workers=2)
    assert none == two


@pytest.mark.parametrize(
    ('settings', 'name', 'point'),
    [
        ({'randomness': {'seed': None}}, 'iter_6', 6),  # one is drawn
        ({'randomness': {'seed': 3, 'diff_rank_seed': True}}, 'iter_6', 6),
        ({'checkpoint': {'by_epoch': True}}, 'epoch_2', 8),
    ],
)
def test_other_settings(
    settings: dict[str, Any], name: str, point: int, tmp_path: Path
) -> None:
    _, whole = toy_run(tmp_path, **settings)
    _, rest = toy_run(
        tmp_path / 'rest',
        resume=True,
        load_from=str(tmp_path / f'{name}.pth'),
        **settings,
    )
    assert rest == {i: whole[i] for i in range(point + 1, 13)}


def test_a_batch_keeps_its_number_in_the_epoch(tmp_path: Path) -> None:
    seen = []

    class Watch(Hook):
        def after_train_iter(
            self, runner: Any, batch_idx: int, **_: Any
        ) -> None:
            seen.append(batch_idx)

    toy_run(tmp_path)
    resume(tmp_path, 6, tmp_path / 'rest', hooks=[Watch()])
    assert seen == [2, 3, 0, 1, 2, 3]


def warning(work_dir: Path) -> str:
    lines = [
        line
        for log in work_dir.glob('*/*.log')
        for line in log.read_text().splitlines()
        if 'bit by bit' in line
    ]
    assert len(lines) == 1
    return lines[0]


def test_a_checkpoint_of_plain_mmengine(tmp_path: Path) -> None:
    toy_run(tmp_path, default_hooks={'checkpoint': {
        'type': 'CheckpointHook', 'by_epoch': False, 'interval': 1,
    }})  # fmt: skip
    _, rest = resume(tmp_path, 8, tmp_path / 'rest')
    assert sorted(rest) == [9, 10, 11, 12]
    assert 'written without ExactResumeHook' in warning(tmp_path / 'rest')


def test_another_batch_size(tmp_path: Path) -> None:
    """The part of the epoch that was seen is not seen again."""
    toy_run(tmp_path)
    _, rest = resume(tmp_path, 6, tmp_path / 'rest', batch_size=6)
    # Half of epoch 2 is left, 1 of 2 batches now, and epoch 3.
    assert sorted(rest) == [7, 8, 9]
    line = warning(tmp_path / 'rest')
    assert "'batches': 4, 'processes': 1" in line
    assert "'batches': 2, 'processes': 1" in line


def test_gradients_that_are_accumulated(tmp_path: Path) -> None:
    """A checkpoint in between says so; the others are exact."""
    wrapper = {
        'optimizer': {'type': 'SGD', 'lr': 1e-3, 'momentum': 0.9},
        'accumulative_counts': 2,
    }
    _, whole = toy_run(tmp_path, optim_wrapper=wrapper)
    assert 'a multiple of accumulative_counts=2' in warning(tmp_path)
    _, rest = resume(tmp_path, 6, tmp_path / 'rest', optim_wrapper=wrapper)
    assert rest == {i: whole[i] for i in range(7, 13)}


def test_a_loader_without_batches(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match='EpochBasedTrainLoop and its data'):
        toy_run(tmp_path, batch_size=None)


@pytest.mark.slow
def test_a_killed_run_of_a_detector() -> None:
    """It is resumed by the command line's code, and equal bit by bit."""
    output = run_tool('tests/soak.py', '--short')
    row = output.splitlines()[-1].split(' | ')
    assert row[1:3] == ['1', '1']
    assert row[4] == 'yes |'
