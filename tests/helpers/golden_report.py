# SPDX-License-Identifier: Apache-2.0
"""Measure the errors against the recorded files, for docs/method.md.

python tests/helpers/golden_report.py docs/method.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from helpers.golden_checks import checks
from helpers.golden_files import BOUNDS, Golden
from lors_det.files import write_between_marks

BEGIN = (
    '<!-- measured errors: tests/helpers/golden_report.py writes from here -->'
)
END = '<!-- measured errors: to here -->'
KINDS = ('outputs', 'gradients', 'boxes')
HEADER = f"""
| file | compared | outputs | | gradients | | boxes (px) | |
| --- | --- | --- | --- | --- | --- | --- | --- |
| |{' | float32 | float64' * 3} |
"""


def error_rows() -> Iterator[str]:
    """One row for each file and what is compared of it."""
    for path, check in checks():
        worst: dict[tuple[str, torch.dtype], float] = {}
        for dtype in BOUNDS:
            for comparison in check(Golden.load(path, dtype)):
                key = comparison.kind, dtype
                errors = [worst.get(key, 0.0), *comparison.errors().values()]
                worst[key] = max(errors)
        cells = [
            f'{worst[kind, dtype]:.1e}' if (kind, dtype) in worst else ''
            for kind in KINDS
            for dtype in BOUNDS
        ]
        if any(cells):
            name = check.__name__
            yield f'| `{path.stem}` | `{name}` | {" | ".join(cells)} |\n'


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('document', metavar='DOCUMENT')
    document = parser.parse_args().document
    table = HEADER + ''.join(error_rows())
    write_between_marks(document, BEGIN, END, table)
