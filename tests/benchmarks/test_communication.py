# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from benchmarks.communication import CONFIGS, format_tables, measure
from lors_det.analysis.costs import report

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_measured_bytes_and_the_document(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    found = measure(CONFIGS)
    for path, sizes in zip(CONFIGS, found.values(), strict=True):
        expected = report(Config.fromfile(path).model).allreduce_bytes
        assert sum(sizes) == expected
        assert len(sizes) > 1
    document = Path('docs/scaling.md').read_text()
    for table in format_tables(found).split('\n\n'):
        assert table in document
