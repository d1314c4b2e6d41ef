# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from factories import decoder, detector_config

from lors_det.engine import UsageError
from lors_det.engine.report import parameter_table


def test_table() -> None:
    table = parameter_table(detector_config('lors'))
    numbers = {
        cells[0].strip(): [int(c.replace(',', '')) for c in cells[1:]]
        for cells in (
            line.strip('|').split('|') for line in table.splitlines()
        )
        if len(cells) == 6 and cells[0].strip() != 'part'
    }
    lors = sum(p.numel() for p in decoder('lors').parameters())
    dense = sum(p.numel() for p in decoder('dense').parameters())
    assert numbers['decoder'][-1] == lors
    assert all(sum(row[:-1]) == row[-1] for row in numbers.values())
    steps = [row for name, row in numbers.items() if '.' in name]
    assert [sum(column) for column in zip(*steps, strict=True)] == numbers[
        'decoder'
    ]
    assert re.search(
        rf'decoder: {lors:,} parameters; .* {dense:,}: '
        rf'{1 - lors / dense:.1%} fewer',
        table,
    )


def test_a_model_without_our_decoder() -> None:
    with pytest.raises(
        UsageError, match=r'model.decoder: expected .* got None'
    ):
        parameter_table({'type': 'RetinaNet'})
