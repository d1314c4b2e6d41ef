# SPDX-License-Identifier: Apache-2.0
"""What data-parallel training exchanges: measured bytes, modelled time.

``python -m benchmarks.communication`` prints the tables of
docs/scaling.md; with configs, those of other models.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)
from torch.nn.parallel import DistributedDataParallel

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.analysis.costs import build_on_meta
from lors_det.analysis.tables import markdown_table, megabytes, names_of
from lors_det.cli.launch import load_config
from lors_det.errors import UsageError

CONFIGS = (
    'configs/adamixer/adamixer_r50_1x_coco.py',
    'configs/lors/lors-adamixer_r50_1x_coco.py',
)
PROCESSES = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Link:
    """What connects each process with the next.

    Args:
        name: For the tables.
        bandwidth: Bytes per second, in each direction.
        latency: Seconds that a message of no length takes.
    """

    name: str
    bandwidth: float
    latency: float


LINKS = (
    Link('10 Gbit/s', 1.25e9, 20e-6),
    Link('25 Gbit/s', 3.125e9, 20e-6),
    Link('100 Gbit/s', 12.5e9, 5e-6),
    Link('400 Gbit/s', 50e9, 5e-6),
)


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

    Needs a process group; one of a single process will do. The model does not
    run: every trained parameter gets a gradient, the last one first.

    Args:
        model: Any model on a real device; its values do not matter.

    Returns:
        Bytes of every all-reduce of gradients, first to last.
    """
    parallel = DistributedDataParallel(
        _EveryParameter(model),
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    sizes = count_bytes(parallel)
    for _ in range(2):  # the first step has one bucket for all
        sizes.clear()
        parallel.zero_grad()
        parallel().backward()
    return sizes


def all_reduce_seconds(size: int, processes: int, link: Link) -> float:
    """Time of one all-reduce, by the faster of two textbook algorithms.

    Ring: 2 (n - 1) messages of size / n one after another. Tree, in which
    the parts of a message follow each other up and down: all bytes pass each
    link twice, after 2 log2(n) latencies.

    Args:
        size: Bytes.
        processes: Number n of processes.
        link: What connects them.

    Returns:
        Seconds, of a model: nothing is measured.
    """
    if processes == 1:
        return 0.0
    transfer = 2 * size / link.bandwidth
    hops = 2 * (processes - 1)
    ring = transfer * (processes - 1) / processes + hops * link.latency
    tree = transfer + 2 * math.ceil(math.log2(processes)) * link.latency
    return min(ring, tree)


def step_seconds(
    sizes: Sequence[int], processes: int, link: Link, backward: float = 0
) -> float:
    """Time that a step waits for gradients, at best.

    Buckets are all-reduced one after another, from the beginning of the
    backward pass on if need be; but the last one is full when it ends.

    Args:
        sizes: Bytes of every bucket, first to last.
        processes: Number of processes.
        link: What connects them.
        backward: Seconds of the backward pass, which hides the transfer of
            all buckets but the last; 0 for the time of the transfer itself.

    Returns:
        Seconds, of a model: nothing is measured.
    """
    times = [all_reduce_seconds(size, processes, link) for size in sizes]
    return max(sum(times) - backward, times[-1])


@contextmanager
def alone() -> Iterator[None]:
    """A process group of this process only."""
    # torch's stubs lack it.
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measured(paths: Sequence[str]) -> dict[str, list[int]]:
    """Bytes of every all-reduce of the models of configs.

    Args:
        paths: Config files.

    Returns:
        `bucket_sizes` by the name of the config.

    Raises:
        UsageError: If a config cannot be read.
    """
    found = {}
    for name, path in zip(names_of(paths), paths, strict=True):
        model = build_on_meta(load_config(path).model)
        with alone():
            found[name] = bucket_sizes(model.to_empty(device='cpu'))
    return found


def format_tables(
    sizes: Mapping[str, Sequence[int]], backward: float = 0.1
) -> str:
    """Tables of bytes and of the model's times, in Markdown.

    Args:
        sizes: Bytes of every all-reduce, by the name of a config.
        backward: Seconds of a backward pass, for the last table.
    """
    measures = [['config', 'gradients', 'all-reduces', 'largest', 'last']]
    measures += [
        [
            name,
            megabytes(sum(each)),
            str(len(each)),
            megabytes(max(each)),
            megabytes(each[-1]),
        ]
        for name, each in sizes.items()
    ]
    return '\n\n'.join(
        [
            'Measured, each process and step:',
            markdown_table(measures),
            f'Model, milliseconds of transfer: {" / ".join(sizes)}.',
            markdown_table(_times(sizes, 0)),
            'Model, milliseconds that a step waits if its backward pass took '
            f'{1e3 * backward:g} ms (assumed): {" / ".join(sizes)}.',
            markdown_table(_times(sizes, backward)),
        ]
    )


def _times(
    sizes: Mapping[str, Sequence[int]], backward: float
) -> list[list[str]]:
    """A row for every number of processes, a column for every link."""
    rows = [['processes', *(link.name for link in LINKS)]]
    for processes in PROCESSES:
        cells = [
            ' / '.join(
                f'{1e3 * step_seconds(each, processes, link, backward):.0f}'
                for each in sizes.values()
            )
            for link in LINKS
        ]
        rows.append([str(processes), *cells])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.communication',
        description='Bytes that data-parallel training all-reduces in each '
        'step, measured, and how long that takes, by a model.',
    )
    parser.add_argument('configs', nargs='*', metavar='CONFIG')
    parser.add_argument(
        '--backward-ms', type=float, default=100, metavar='MS',
        help='of your backward pass, which hides transfers (default: 100)',
    )  # fmt: skip
    args = parser.parse_args(arguments)
    try:
        found = measured(args.configs or CONFIGS)
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None
    print(format_tables(found, args.backward_ms / 1e3))


if __name__ == '__main__':
    main()
