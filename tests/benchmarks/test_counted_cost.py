# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and bytes at the default shapes do not grow unnoticed.

They are counted on the meta device, where nothing depends on a clock. The
bounds are what was counted plus a few percent: lower them with the costs.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.bench import Bench
from benchmarks.cases import Case
from benchmarks.variants import VARIANTS
from lors_det.analysis import timing


@cache
def bench(part: str, mode: str, queries: int) -> Bench:
    return Bench(Case(part, mode, (), device='meta', queries=queries))


@cache
def macs(part: str, mode: str, queries: int, variant: str) -> float:
    """10^9 multiply-adds."""
    call = bench(part, mode, queries).prepare(VARIANTS[variant])(0)
    return timing.multiply_adds(call) / 1e9


@cache
def saved(part: str, queries: int, variant: str) -> float:
    """10^6 bytes that are kept for the backward pass."""
    return bench(part, 'train', queries).saved_bytes(VARIANTS[variant]) / 1e6


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'bound'),
    [
        ('mixing', 'forward', 100, 11.1),
        ('mixing', 'forward', 600, 66.5),
        ('mixing', 'train', 100, 33.3),
        ('mixing', 'train', 600, 199.0),
        ('decoder', 'forward', 100, 12.1),
    ],
)
def test_multiply_adds_of_dense(
    part: str, mode: str, queries: int, bound: float
) -> None:
    assert macs(part, mode, queries, 'dense') <= bound


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'variant', 'bound'),
    [
        ('mixing', 'forward', 100, 'lors', 1.53),
        ('mixing', 'forward', 600, 'lors', 1.45),
        ('mixing', 'train', 100, 'lors-none', 1.53),
        ('mixing', 'train', 600, 'lors-none', 1.45),
        ('mixing', 'train', 600, 'lors-activations', 1.53),
        ('mixing', 'train', 600, 'lors-kernels', 1.77),
        ('decoder', 'forward', 100, 'lors', 1.5),
    ],
)
def test_multiply_adds_of_lors_over_dense(
    part: str, mode: str, queries: int, variant: str, bound: float
) -> None:
    ours = macs(part, mode, queries, variant)
    assert ours <= bound * macs(part, mode, queries, 'dense')


@pytest.mark.parametrize(
    ('part', 'queries', 'variant', 'baseline', 'bound'),
    [
        ('mixing', 100, 'lors-none', 'reference', 0.73),
        ('mixing', 600, 'lors-none', 'reference', 0.94),
        ('mixing', 600, 'lors-activations', 'reference', 0.43),
        ('mixing', 100, 'lors-kernels', 'reference', 0.065),
        ('mixing', 600, 'lors-kernels', 'reference', 0.08),
        ('mixing', 600, 'dense', 'reference', 0.57),
        ('decoder', 100, 'lors-none', 'dense', 1.52),
        ('decoder', 100, 'lors-kernels', 'dense', 0.44),
    ],
)
def test_saved_bytes(
    part: str, queries: int, variant: str, baseline: str, bound: float
) -> None:
    ours = saved(part, queries, variant)
    assert ours <= bound * saved(part, queries, baseline)
