# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

from helpers.golden_checks import CHECKS
from helpers.golden_report import BEGIN, END

ROOT = Path(__file__).resolve().parents[1]
#: Exact, or with a table of their own.
NOT_IN_TABLE = {'detector_inputs', 'detector_conversion'}


def test_the_table_in_the_document_is_of_these_checks() -> None:
    """Compare names, not digits, which depend on the machine."""
    text = (ROOT / 'docs' / 'method.md').read_text(encoding='utf-8')
    table = text.split(BEGIN)[1].split(END)[0]
    rows = set(re.findall(r'^\| `(\w+)` \| `(\w+)` \|', table, re.MULTILINE))
    recorded = {path.stem for path in (ROOT / 'tests/golden').glob('*.npz')}
    stems = recorded | {stem for stem, _ in rows}
    assert rows == {
        (stem, check.__name__)
        for kind, checks in CHECKS.items()
        for check in checks
        for stem in stems
        if stem.startswith(kind) and check.__name__ not in NOT_IN_TABLE
    }
