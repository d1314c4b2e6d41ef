# SPDX-License-Identifier: Apache-2.0
"""Time and memory on a GPU: the other parts of benchmarks.gpu."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import torch
from mmengine.config import Config
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bench import Bench
from benchmarks.checked import run_case
from benchmarks.document import HEADER, rows
from benchmarks.gpu_checks import Context, Row
from lors_det.analysis import benchmark, timing

#: Whole detectors: AdaMixer, LORS, LORS at AdaMixer's shape.
DETECTORS = {
    'dense': 'configs/adamixer/adamixer_r50_1x_coco.py',
    'lors': 'configs/lors/lors-adamixer_r50_1x_coco.py',
    'lors-g4': 'configs/lors/lors-adamixer_r50_4-group_1x_coco.py',
}
#: The same narrow ones, where the command is only tried.
SMALL = {
    'dense': 'configs/bccd/adamixer_mobilenetv2_bccd.py',
    'lors': 'configs/bccd/lors-adamixer_mobilenetv2_bccd.py',
    'lors-g4': 'configs/bccd/lors-adamixer_mobilenetv2_4-group_bccd.py',
}
#: What is compared, by the way it is run; ratios are against the first.
VARIANTS = {
    'eager': ('dense', 'lors', 'lors-g4', 'reference'),
    'graphed': ('dense', 'dense-graphed', 'lors-graphed', 'lors-g4-graphed'),
    'compiled': (
        'dense', 'dense-compiled', 'lors-compiled', 'lors-g4-compiled'
    ),
}  # fmt: skip
LABEL = 'operator '
COLUMNS = ['operator', 'kernel', 'seconds', 'moved', 'calls']


def decoders(
    context: Context, mode: str, batch: int, way: str
) -> Iterator[Row]:
    """Compare decoders with docs/method.py, then time them side by side.

    Args:
        context: Where.
        mode: Of `Case`.
        batch: Images.
        way: A key of `VARIANTS`.
    """
    result = run_case(
        context.case(
            'decoder', mode, VARIANTS[way], batch=batch,
            dtype=context.dtype, rounds=20,
        )
    )  # fmt: skip
    for line in rows(result):
        seconds = result['variants'][line[0]]['seconds']
        yield {**dict(zip(HEADER, line, strict=True)), 'seconds': seconds}


def detectors(
    context: Context, mode: str, batch: int, way: str
) -> Iterator[Row]:
    """Time whole detectors with random weights side by side.

    Args:
        context: Where.
        mode: ``train``: losses and gradients; ``forward``: predictions.
        batch: Images.
        way: ``eager`` or ``compiled``.
    """
    options = benchmark.Options(
        batch if context.on_gpu else 2,
        (800, 1344) if context.on_gpu else (64, 96),
        context.device,
        (context.dtype,),
        mode == 'train',
        way == 'compiled',
        repeats=10 if context.on_gpu else 1,
    )
    files = DETECTORS if context.on_gpu else SMALL
    models = {}
    for name, file in files.items():
        cfg = Config.fromfile(file).model
        if not context.on_gpu:
            cfg.decoder.num_stages = 1
        models[name] = benchmark.build(name, cfg, options)
    results = benchmark.measure(models, options)
    first = results['dense']['seconds']
    for name, result in results.items():
        seconds, peak = result['seconds'], result['peak_bytes']
        whole = timing.Spread.of(seconds)
        line = {
            'variant': name,
            'time': timing.ratio(seconds, first).text(),
            'ms': whole.text(1, 1e3),
            'images/s': f'{options.batch_size / whole.median:.1f}',
            'peak MB': f'{peak / 1e6:.0f}',
        }
        parts = result['parts']
        total = [sum(each) for each in zip(*parts.values(), strict=True)]
        for part, each in parts.items():
            line[f'{part}, %'] = timing.ratio(each, total).text(0, 100)
        yield {**line, 'seconds': seconds}


class Traffic(TorchDispatchMode):
    """Label operators for the profiler, and count the bytes they must move.

    Each input read once, each output written once. A gather reads no more
    rows than it has indices.

    Attributes:
        operators: Name and bytes of each, in the order of the labels.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.operators: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator under its label."""
        number, name = len(self.operators), str(func)
        self.operators.append((name, 0))
        with record_function(f'{LABEL}{number}'):
            result = func(*args, **(kwargs or {}))
        read = tensors((args, kwargs))
        if name.split('.')[1] in ('copy_', 'fill_', 'zero_'):
            read = read[1:]
        moved = sum(map(num_bytes, tensors(result)))
        indices = [x.numel() for x in read if not x.is_floating_point()]
        for x in read:
            is_table = 'embedding_bag' in name and x.dim() == 2
            once = num_bytes(x)
            if is_table and x.is_floating_point():
                once = min(once, max(indices) * num_bytes(x[:1]))
            moved += once
        self.operators[number] = name, moved
        return result


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in arguments or results."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def num_bytes(x: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded counts once."""
    sides = zip(x.shape, x.stride(), strict=True)
    own = [length for length, step in sides if step or not length]
    return math.prod(own) * x.element_size()


def kernels(
    context: Context, mode: str, batch: int, way: str
) -> Iterator[Row]:
    """List the ten longest kernels of LORS; first a copy, the floor.

    Args:
        context: Where; on a processor operators stand for their kernels.
        mode: Of `Case`.
        batch: Images.
        way: As of `benchmarks.cases.Variant`.
    """
    size = 2**30 if context.on_gpu else 2**24
    source = torch.randint(9, (size,), dtype=torch.int8, device=context.device)
    target = torch.empty_like(source)
    copies = timing.measure({'': lambda: target.copy_(source)}, rounds=9)['']
    copy = timing.Spread.of(copies).median  # reads and writes
    case = context.case('decoder', mode, (), batch=batch, dtype=context.dtype)
    ran = profiled(Bench.build(case, 'lors').call(way), context.on_gpu)
    total = ran.seconds.sum()
    first = pd.DataFrame([['copy', '', copy, 2 * size, 1]], columns=COLUMNS)
    for row in pd.concat([first, ran[:10]]).itertuples(index=False, name=None):
        operator, kernel, seconds, moved, calls = row
        floor = copy * moved / (2 * size)
        share = f'{100 * seconds / total:.1f}'
        yield {
            'operator': operator,
            'kernel': kernel[:60],
            'calls': str(calls),
            'ms': f'{1e3 * seconds:.3f}',
            '% of all': '' if operator == 'copy' else share,
            'MB': f'{moved / 1e6:.1f}',
            'time / floor': f'{seconds / floor:.1f}' if floor else '',
        }


def profiled(call: Callable[[], object], on_gpu: bool) -> pd.DataFrame:
    """Profile a call.

    Args:
        call: What to run.
        on_gpu: Whether kernels of a GPU count, or operators.

    Returns:
        `COLUMNS`, a row for each operator and the kernel that ran longest in
        it, the longest first: seconds of all kernels of these calls, bytes
        that they must move, number of calls.
    """
    for _ in range(2):
        call()
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as record, Traffic() as traffic:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    found = []
    for event in record.events() or ():
        if not event.name.startswith(LABEL) or event.device_type.name != 'CPU':
            continue
        name, moved = traffic.operators[int(event.name.removeprefix(LABEL))]
        ran = kernels_of(event) if on_gpu else [('', event.cpu_time_total)]
        if ran:
            longest = max(ran, key=lambda each: each[1])[0]
            seconds = sum(us for _, us in ran) / 1e6
            found.append((name, longest, seconds, moved, 1))
    table = pd.DataFrame(found, columns=COLUMNS)
    table = table.groupby(COLUMNS[:2], as_index=False).sum()
    return table.sort_values('seconds', ascending=False, ignore_index=True)


def kernels_of(event: Any) -> list[tuple[str, float]]:
    """Return kernels, with microseconds, that an event has launched."""
    own = [
        (kernel.name, kernel.duration)
        for kernel in event.kernels
        if not kernel.name.startswith(LABEL)  # a label's own shadow
    ]
    return own + [k for child in event.cpu_children for k in kernels_of(child)]
