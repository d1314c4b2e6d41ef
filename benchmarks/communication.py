# SPDX-License-Identifier: Apache-2.0
"""Count the bytes that data-parallel training exchanges in each step.

``python -m benchmarks.communication [CONFIG ...]`` prints the tables of
docs/scaling.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

import torch  # isort: skip
import torch.distributed as dist
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)
from torch.nn.parallel import DistributedDataParallel

from lors_det.analysis.tables import markdown_table

CONFIGS = (
    'configs/adamixer/adamixer_r50_1x_coco.py',
    'configs/lors/lors-adamixer_r50_1x_coco.py',
)
PROCESSES = 8
GBITS = (10, 25, 100, 400)


def count_bytes(parallel: DistributedDataParallel) -> list[int]:
    """Note the bytes of every all-reduce of gradients, by a hook.

    Args:
        parallel: A wrapped model. Its gradients are averaged as before.

    Returns:
        A list to which each backward pass adds the size of every bucket.
    """

    def note(bucket: Any) -> object:
        sizes.append(bucket.buffer().nbytes)
        return allreduce_hook(parallel.process_group, bucket)

    sizes: list[int] = []
    # A lambda, since torch refuses annotations that are strings.
    parallel.register_comm_hook(None, lambda _, bucket: note(bucket))
    return sizes


class _EveryParameter(nn.Module):
    """Gives all trained parameters of a model a gradient, last first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> Tensor:
        sums = [x.sum() for x in self.parameters() if x.requires_grad]
        return torch.stack(sums).sum()


def bucket_sizes(model: nn.Module) -> list[int]:
    """Measure what one step of data-parallel training all-reduces.

    The model does not run: every trained parameter gets a gradient, the last
    one first, in a process group of this process only.

    Args:
        model: Any model; its values do not matter.

    Returns:
        Bytes of every all-reduce of gradients, first to last.
    """
    # torch's stubs lack it.
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(_EveryParameter(model))
        sizes = count_bytes(parallel)
        for _ in range(2):  # the first step has one bucket for all
            sizes.clear()
            parallel().backward()
    finally:
        dist.destroy_process_group()
    return sizes


def measure(paths: Iterable[str]) -> dict[str, list[int]]:
    """Return the `bucket_sizes` of the models of configs, by their name."""
    register_all_modules()
    return {
        Path(path).stem: bucket_sizes(
            MODELS.build(Config.fromfile(path).model)
        )
        for path in paths
    }


def format_tables(sizes: Mapping[str, Sequence[int]]) -> str:
    """Write tables of bytes, and of the least time that they take.

    Args:
        sizes: Bytes of every all-reduce, by the name of a config.

    Returns:
        Markdown.
    """
    measured = [['config', 'gradients', 'all-reduces', 'largest', 'last']]
    times = [['config', *(f'{gbits} Gbit/s' for gbits in GBITS)]]
    for name, each in sizes.items():
        total, largest, last = (
            f'{size / 1e6:.1f} MB' for size in (sum(each), max(each), each[-1])
        )
        measured.append([name, total, str(len(each)), largest, last])
        # An all-reduce takes each byte but those of the own part twice.
        sent = 2 * (PROCESSES - 1) / PROCESSES * sum(each)
        times.append(
            [name, *(f'{8e-6 * sent / gbits:.0f} ms' for gbits in GBITS)]
        )
    return f'{markdown_table(measured)}\n\n{markdown_table(times)}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'configs', nargs='*', default=CONFIGS, metavar='CONFIG'
    )
    print(format_tables(measure(parser.parse_args().configs)))
