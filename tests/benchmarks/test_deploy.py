# SPDX-License-Identifier: Apache-2.0
"""What is timed out of Python, and how it is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from helpers.command_lines import ROOT

from benchmarks.deploy import HEADER, Variant, main, table, time_images
from lors_det.errors import UsageError


def variant(name: str, size: int, ap: float | None, log: list[Any]) -> Variant:
    predictor: Any = SimpleNamespace(
        _prepare=lambda data: data['img'].shape,
        run=lambda batch: log.append((name, batch)),
    )
    return Variant((name, 'torch', 'float32'), predictor, size, ap)


def test_each_image_runs_through_all_of_them() -> None:
    log: list[Any] = []
    variants = [variant('a', 4, None, log), variant('b', 2, 1.0, log)]
    images = sorted((ROOT / 'demo/bccd/images').glob('*.jpg'))[:3]
    seconds = time_images(variants, images)
    assert [len(each) for each in seconds] == [3, 3]
    # Once to warm up; another order for each image.
    assert ''.join(name for name, _ in log) == 'baabbaab'


def test_too_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match='--images 9999: expected 1 to 364'):
        main(['--images', '9999'])


def test_table() -> None:
    variants = [
        variant('a', 4_000_000, None, []),
        variant('b', 10**6, 1.0, []),
    ]
    rows = table(variants, [[0.2, 0.4], [0.1, 0.2]])
    assert all(len(row) == len(HEADER) for row in rows)
    assert rows[0][3:] == ['1.00', '1.00', '300.0', '390.0', '4.0', '']
    assert rows[1][3:] == ['0.50', '0.25', '150.0', '195.0', '1.0', '1.0']
