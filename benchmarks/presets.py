# SPDX-License-Identifier: Apache-2.0
"""The cases that docs/performance.md shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import Case

#: Ours with all values of the switch that differ from its default, which
#: keeps everything for few queries and recomputes the matrices for many.
FEW = ('lors', 'lors-activations', 'lors-kernels')
MANY = ('lors', 'lors-none', 'lors-activations')

MIXING = Case(
    'mixing',
    'forward',
    ('dense', 'reference', 'lors', 'dense-g2', 'lors-folded',
     'lors-folded-all'),
    repeats=25,
)  # fmt: skip
MIXING_TRAIN = Case(
    'mixing',
    'train',
    ('dense', 'reference', *FEW, 'dense-g2'),
    repeats=15,
)
MIXING_LARGE = Case(
    'mixing',
    'train',
    ('reference', *MANY),
    batch=2,
    queries=300,
    repeats=7,
)
DECODER = Case(
    'decoder',
    'forward',
    ('dense-plain', 'dense', 'reference', 'lors', 'lors-folded',
     'lors-folded-all'),
    repeats=15,
)  # fmt: skip
DECODER_TRAIN = Case(
    'decoder',
    'train',
    ('dense-plain', 'dense', 'reference', *FEW),
    batch=2,
    repeats=5,
)
GPU_TRAIN = Case(
    'decoder',
    'train',
    ('reference', *MANY, 'lors-fused', 'dense', 'dense-fused', 'dense-plain'),
    device='cuda',
    dtype='bfloat16',
    batch=16,
    repeats=20,
)
GPU_PREDICT = Case(
    'decoder',
    'forward',
    ('dense-graphed', 'lors-graphed', 'dense-fused-graphed',
     'lors-fused-graphed', 'dense-compiled', 'lors-compiled', 'dense', 'lors',
     'reference'),
    device='cuda',
    dtype='bfloat16',
    repeats=50,
)  # fmt: skip
GPU_PREDICT_FULL = replace(GPU_PREDICT, dtype='float32')
BAR = (
    MIXING, MIXING_TRAIN, MIXING_LARGE, DECODER, DECODER_TRAIN, GPU_TRAIN,
    GPU_PREDICT, GPU_PREDICT_FULL,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table of goals.

    Args:
        what: What is compared.
        case: Where it is measured.
        subject: Variant that is judged.
        baseline: Variant that it is compared with.
        quantity: ``seconds``, ``peak_bytes`` or ``saved_bytes``.
        official: What the official formulation reaches.
        reach: The largest ratio wanted.
    """

    what: str
    case: Case
    subject: str
    baseline: str
    quantity: str
    official: str
    reach: float


ROWS = (
    Row('mixing, forward, LORS against dense AdaMixer', MIXING,
        'lors', 'dense', 'seconds', '3.2', 1.55),
    Row('mixing, forward + backward, LORS against dense AdaMixer',
        MIXING_TRAIN, 'lors', 'dense', 'seconds', '2.0', 1.5),
    Row('LORS mixing, forward, against the reference', MIXING,
        'lors', 'reference', 'seconds', '1', 0.45),
    Row('LORS mixing, forward + backward, against the reference: time',
        MIXING_LARGE, 'lors', 'reference', 'seconds', '1', 0.65),
    Row('the same: peak extra memory', MIXING_LARGE,
        'lors', 'reference', 'peak_bytes', '1', 0.4),
    Row('dense decoder, forward, against a plain formulation', DECODER,
        'dense', 'dense-plain', 'seconds', '1', 0.85),
    Row('dense decoder, forward + backward, against the same',
        DECODER_TRAIN, 'dense', 'dense-plain', 'seconds', '1', 0.85),
    Row('GPU: LORS decoder, training step, against the reference: time',
        GPU_TRAIN, 'lors', 'reference', 'seconds', '1', 0.5),
    Row('the same: peak extra memory', GPU_TRAIN,
        'lors', 'reference', 'peak_bytes', '1', 0.4),
    Row('the same: kept for the backward pass', GPU_TRAIN,
        'lors', 'reference', 'saved_bytes', '1', 0.4),
    Row('GPU: predict, LORS against dense, graphed', GPU_PREDICT,
        'lors-graphed', 'dense-graphed', 'seconds', '', 1.1),
    Row('the same in float32', GPU_PREDICT_FULL,
        'lors-graphed', 'dense-graphed', 'seconds', '', 1.1),
)  # fmt: skip

#: Values of a field of the case, by the name of a sweep.
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    'batch': ('batch', (1, 16)),
    'queries': ('queries', (50, 100, 300)),
    'stages': ('stages', (1, 3, 6, 12)),
    'rank': ('rank', (4, 8, 16, 32, 64)),
    'K': ('num_param_groups', (1, 2, 3, 4)),
}
SWEPT = ('reference', 'dense', 'lors')


def sweep(axis: str, base: Case) -> list[Case]:
    """The cases of a sweep.

    Args:
        axis: A name out of `AXES`.
        base: Everything else.
    """
    field, values = AXES[axis]
    changes: list[dict[str, Any]] = [{field: value} for value in values]
    return [replace(base, **change) for change in changes]


def sweeps(device: str = 'cpu') -> Iterator[tuple[str, Case]]:
    """All sweeps of the preset: axis and case.

    What costs grow with is swept in training, since that needs the memory;
    rank and K in the forward. Half the stages do for batch and queries.

    Args:
        device: Where to run.
    """
    train = Case('mixing', 'train', SWEPT, device=device, repeats=3)
    forward = Case('mixing', 'forward', SWEPT, device=device, repeats=7)
    bases = {
        'batch': replace(train, stages=3),
        'queries': replace(train, stages=3),
        'stages': train,
        'rank': forward,
        'K': forward,
    }
    for axis, base in bases.items():
        for case in sweep(axis, base):
            yield axis, case
