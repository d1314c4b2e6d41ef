# SPDX-License-Identifier: Apache-2.0
"""Groups of processes that talk over gloo, without importing anything anew."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here, or each process does when it wraps a model
import torch.distributed as dist

SECONDS = 120


def in_processes(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What ``work(*args)`` returns in each process of a group, by rank."""
    context = multiprocessing.get_context('fork')
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(
                target=_run, args=(rank, size, folder, work, args), daemon=True
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * size, codes
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
    store = dist.FileStore(str(Path(folder, 'store')), size)
    dist.init_process_group('gloo', store=store, rank=rank, world_size=size)
    try:
        torch.save(work(*args), Path(folder, str(rank)))
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # nothing that the parent has begun is ended here
