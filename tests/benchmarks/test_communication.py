# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.communication import (
    CONFIGS,
    Link,
    all_reduce_seconds,
    format_tables,
    main,
    measured,
    step_seconds,
)
from lors_det.analysis.costs import report
from lors_det.cli.launch import load_config

ROOT = Path(__file__).parents[2]
LINK = Link('a byte per second', 1.0, 0.0)
SLOW_TO_START = Link('a second of latency', 1e9, 1.0)


@pytest.mark.slow
def test_measured_bytes_and_the_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    found = measured(CONFIGS)
    for path, sizes in zip(CONFIGS, found.values(), strict=True):
        assert sum(sizes) == report(load_config(path).model).allreduce_bytes
        assert len(sizes) > 1
    assert format_tables(found) in Path('docs/scaling.md').read_text()


@pytest.mark.parametrize('processes', [2, 3, 8, 512])
def test_all_reduce(processes: int) -> None:
    """Each process sends all but its part of the sum, twice."""
    bandwidth = all_reduce_seconds(1000, processes, LINK)
    assert bandwidth == pytest.approx(2000 * (processes - 1) / processes)
    latency = all_reduce_seconds(0, processes, SLOW_TO_START)
    assert latency == {2: 2, 3: 4, 8: 6, 512: 18}[processes]


def test_nobody_to_wait_for() -> None:
    assert step_seconds([10, 10], 1, SLOW_TO_START) == 0


@pytest.mark.parametrize(
    ('backward', 'seconds'), [(0, 60), (5, 55), (49, 11), (50, 10), (99, 10)]
)
def test_the_backward_pass_hides_all_but_the_last(
    backward: float, seconds: float
) -> None:
    assert step_seconds([20, 30, 10], 2, LINK, backward) == seconds


def test_a_wrong_config() -> None:
    with pytest.raises(SystemExit, match='error: CONFIG: none'):
        main(['none.py'])
