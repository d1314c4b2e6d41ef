# SPDX-License-Identifier: Apache-2.0
"""The numbers of docs/lors_library.md."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from lors_det.lors import StackedLinear, count_parameters

DOCUMENT = Path(__file__).parents[2] / 'docs/lors_library.md'


def test_the_example_has_the_counts_that_it_says() -> None:
    text = DOCUMENT.read_text()
    code = re.findall(r'```python\n(.*?)```', text, re.S)
    names: dict[str, object] = {}
    exec(code[0], names)
    counted = count_parameters(names['model'])
    assert (
        f'{counted.total:,} parameters\ninstead of {counted.dense_total:,}'
        in text
    )
    dense = nn.TransformerEncoder(names['layer'], 12)
    assert counted.dense_total == sum(p.numel() for p in dense.parameters())


def test_the_counts_are_true() -> None:
    text = DOCUMENT.read_text()
    rows = re.findall(
        r'^\| (\d+) \| (\d+) x (\d+) \| ([\d,]+) \| (\d+) \| ([\d,]+) '
        r'\| (-?[\d.]+) % \| (\d+) \|$',
        text,
        re.M,
    )
    assert len(rows) == 7
    for row in rows:
        n, d, h, dense, r, lors, less, limit = (
            float(value.replace(',', '')) for value in row
        )
        n, d, h, r, limit = map(int, (n, d, h, r, limit))
        counted = 0
        for rank in (r, limit - 1, limit):
            config = {'mode': 'lors', 'rank': rank}
            stack = StackedLinear(n, h, d, config, bias=False)
            size = sum(p.numel() for p in stack.parameters())
            counted = counted or size
            # The first rank at which nothing is saved any more.
            if rank != r:
                assert (size < dense) == (rank < limit)
        assert (n * d * h, counted) == (dense, lors)
        assert round(100 * (1 - lors / dense), 1) == less
    training = 12 * 768 * 192
    assert f'{4 * training:,} numbers dense, {4 * 516_096 + training:,}' in (
        text
    )
