# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run end; the rest is in tests/tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lors_det.engine import launch


def gloo_threads() -> int:
    tasks = Path('/proc/self/task').iterdir()
    names = [(task / 'comm').read_text() for task in tasks]
    return sum('gloo' in name for name in names)


@pytest.mark.skipif(
    not Path('/proc/self/task').exists(), reason='threads are read from /proc'
)
def test_leaving_ends_the_threads_of_the_group(tmp_path: Path) -> None:
    """Else one may free a tensor at exit, which aborts the process."""
    dist.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    wrapped = DistributedDataParallel(nn.Linear(2, 2))
    wrapped.cycle = [wrapped]  # type: ignore[assignment]  # as in a runner
    assert gloo_threads()
    del wrapped
    launch._leave()
    assert not dist.is_initialized()
    assert not gloo_threads()
