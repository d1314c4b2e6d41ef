# SPDX-License-Identifier: Apache-2.0
"""Where runs begin again and how they end; the rest is in tests/tools."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lors_det.cli import launch, train


def gloo_threads() -> set[str]:
    tasks = Path('/proc/self/task').iterdir()
    return {
        task.name for task in tasks if 'gloo' in (task / 'comm').read_text()
    }


@pytest.mark.skipif(
    not Path('/proc/self/task').exists(), reason='threads are read from /proc'
)
def test_leaving_ends_the_threads_of_the_group(tmp_path: Path) -> None:
    """Else one may free a tensor at exit, which aborts the process."""
    others = gloo_threads()  # of other tests
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    wrapped = DistributedDataParallel(nn.Linear(2, 2))
    wrapped.cycle = [wrapped]  # type: ignore[assignment]  # as in a runner
    assert gloo_threads() - others
    del wrapped
    launch.leave()
    assert not dist.is_initialized()
    assert not gloo_threads() - others


def resume_from(work_dir: Path, **arguments: str | bool) -> str | None:
    found = {'resume': None, 'overwrite': False, 'trust': False} | arguments
    cfg = Config({'work_dir': str(work_dir)})
    return train._resume_from(argparse.Namespace(**found), cfg)


def write_checkpoint(path: Path, iteration: int) -> None:
    torch.save({'meta': {'epoch': 0, 'iter': iteration}}, path)


@pytest.mark.parametrize(
    ('arguments', 'first'),
    [
        ({'overwrite': True}, None),
        ({'resume': 'auto'}, 'iter_1.pth'),
        ({'resume': 'other.pth'}, 'other.pth'),
    ],
)
def test_what_a_restarted_worker_resumes_from(
    arguments: dict[str, str | bool],
    first: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From what its launch has written, or as the command line says."""
    write_checkpoint(tmp_path / 'iter_1.pth', 1)
    os.utime(tmp_path / 'iter_1.pth', (1, 1))
    # The first start without a launcher, by one, and after a worker died
    # before it had written a checkpoint.
    for rank, restarts in ((0, -1), (0, 0), (1, 0), (1, 1)):
        monkeypatch.setenv('RANK', str(rank))
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', str(restarts))
        found = resume_from(tmp_path, **arguments)
        assert (found and Path(found).name) == first
    write_checkpoint(tmp_path / 'iter_2.pth', 2)
    assert resume_from(tmp_path, **arguments) == str(tmp_path / 'iter_2.pth')


@pytest.mark.parametrize(
    'given',
    [
        {},
        {'find_unused_parameters': True},
        {'model_wrapper_cfg': {'static_graph': True}},
    ],
)
def test_settings_of_distributed_models_on_a_cpu(given: dict) -> None:
    """As mmengine reads them, without a device."""
    unused = given.get('find_unused_parameters', False)
    default = {'broadcast_buffers': False, 'find_unused_parameters': unused}
    expected = given.get('model_wrapper_cfg', default)
    assert launch._wrapper_on_cpu(Config(given)) == {
        'type': 'MMDistributedDataParallel', 'device_ids': None, **expected
    }  # fmt: skip
