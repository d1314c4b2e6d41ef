# SPDX-License-Identifier: Apache-2.0
"""Groups of processes that talk over gloo, without importing anything anew."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # here, or each process does when it wraps a model
import torch.distributed as dist
from torch import multiprocessing


def in_processes(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Return what ``work(*args)`` returns in each process, by rank."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.start_processes(
            _run, (size, folder, work, args), size, start_method='fork'
        )
        return [
            torch.load(f'{folder}/{rank}', weights_only=False)
            for rank in range(size)
        ]


def _run(
    rank: int, size: int, folder: str, work: Callable[..., Any], args: Any
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size)
    )
    torch.set_num_threads(1)  # those of the parent are not in its copy
    dist.init_process_group(
        'gloo',
        store=dist.FileStore(f'{folder}/store', size),
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=2),
    )
    torch.save(work(*args), f'{folder}/{rank}')
    dist.barrier()
    dist.destroy_process_group()
