# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and peak memory at the default shapes stay where they are.

They are counted on the meta device, where nothing depends on a clock. The
bounds are what was counted plus a few percent: lower them with the costs.
"""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.bench import Bench
from benchmarks.cases import VARIANTS, Case
from benchmarks.checked import multiply_adds
from lors_det.analysis.timing import peak_bytes


def case(part: str, mode: str, queries: int) -> Case:
    return Case(part, mode, (), device='meta', queries=queries)


@cache
def macs(part: str, mode: str, queries: int, name: str) -> float:
    """10^9 multiply-adds."""
    return multiply_adds(case(part, mode, queries), VARIANTS[name]) / 1e9


@cache
def peak(part: str, mode: str, queries: int, name: str) -> float:
    """10^6 bytes, with the gradients in training."""
    model, way = VARIANTS[name]
    bench = Bench.build(case(part, mode, queries), model)
    return peak_bytes(bench.call(way), 'meta') / 1e6


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'bound'),
    [
        ('mixing', 'forward', 100, 11.1),
        ('mixing', 'train', 600, 199.0),
        ('decoder', 'forward', 100, 12.1),
    ],
)
def test_multiply_adds_of_dense(
    part: str, mode: str, queries: int, bound: float
) -> None:
    assert macs(part, mode, queries, 'dense') <= bound


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'name', 'bound'),
    [
        ('mixing', 'forward', 100, 'lors', 1.53),
        ('mixing', 'train', 600, 'lors', 1.52),
        ('mixing', 'train', 600, 'lors-cp', 1.87),
        ('mixing', 'train', 600, 'lors-g4', 1.15),
        ('decoder', 'forward', 100, 'lors', 1.49),
    ],
)
def test_multiply_adds_over_dense(
    part: str, mode: str, queries: int, name: str, bound: float
) -> None:
    ours = macs(part, mode, queries, name)
    assert ours <= bound * macs(part, mode, queries, 'dense')


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'name', 'baseline', 'bound'),
    [
        ('mixing', 'forward', 100, 'lors', 'reference', 0.33),
        ('mixing', 'train', 100, 'lors', 'dense', 1.25),
        ('mixing', 'train', 600, 'lors', 'reference', 1.0),
        ('mixing', 'train', 600, 'lors-cp', 'lors', 0.29),
        ('decoder', 'train', 100, 'lors', 'dense', 1.07),
        ('decoder', 'train', 100, 'lors-cp', 'dense', 0.7),
    ],
)
def test_peak_memory(
    part: str, mode: str, queries: int, name: str, baseline: str, bound: float
) -> None:
    ours = peak(part, mode, queries, name)
    assert ours <= bound * peak(part, mode, queries, baseline)
