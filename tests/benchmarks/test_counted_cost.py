# SPDX-License-Identifier: Apache-2.0
"""Multiply-adds and peak memory at the default shapes stay where they are.

They are counted on the meta device, where nothing depends on a clock. The
bounds are what was counted plus a few percent: lower them with the costs.
"""

from __future__ import annotations

import pytest

from benchmarks.bench import Bench
from benchmarks.cases import VARIANTS, Case
from benchmarks.checked import multiply_adds
from lors_det.analysis.timing import peak_bytes


@pytest.mark.parametrize(
    ('part', 'mode', 'queries', 'name', 'gmacs', 'megabytes'),
    [
        ('mixing', 'forward', 100, 'dense', 11.1, 44),
        ('mixing', 'forward', 100, 'lors', 16.8, 54),
        ('mixing', 'forward', 100, 'lors-g4', 12.7, 44),
        ('mixing', 'train', 600, 'dense', 199, 1900),
        ('mixing', 'train', 600, 'lors', 285, 2950),
        ('mixing', 'train', 600, 'lors-cp', 350, 890),
        ('decoder', 'forward', 100, 'dense', 12.1, 142),
        ('decoder', 'forward', 100, 'lors', 17.8, 155),
        ('decoder', 'train', 100, 'lors', 53.5, 845),
    ],
)
def test_costs(
    part: str, mode: str, queries: int, name: str, gmacs: float, megabytes: int
) -> None:
    case = Case(part, mode, (), device='meta', queries=queries)
    model, way = VARIANTS[name]
    assert multiply_adds(case, VARIANTS[name]) / 1e9 <= gmacs
    call = Bench.build(case, model).call(way)
    assert peak_bytes(call, 'meta') / 1e6 <= megabytes
