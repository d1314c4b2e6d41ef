# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

from helpers import golden_report
from helpers.golden_report import BEGIN, END
from test_golden import CHECKS

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_in_the_docs_is_of_these_checks() -> None:
    """Of names, not of digits, which depend on the machine."""
    text = (ROOT / 'docs' / 'method.md').read_text(encoding='utf-8')
    table = text.split(BEGIN)[1].split(END)[0]
    rows = set(re.findall(r'^\| `(\w+)` \| `(\w+)` \|', table, re.MULTILINE))
    known = {
        (kind, check.__name__)
        for kind, checks in CHECKS.items()
        for check in checks
    }
    for stem, check in rows:
        assert any(
            stem.startswith(kind) and check == name for kind, name in known
        ), (stem, check)
    measured = {check for _, check in rows}
    # These two are exact, or have a table of their own.
    exact = {'detector_inputs', 'detector_conversion'}
    assert measured == {name for _, name in known} - exact
    carried = {path.stem for path in (ROOT / 'tests/golden').glob('*.npz')}
    recorded = {
        stem
        for stem in carried
        if any(stem.startswith(kind) for kind, _ in known)
    }
    assert recorded <= {stem for stem, _ in rows}
    for name in golden_report.RESIZING:
        assert f'| {name} |' in table
