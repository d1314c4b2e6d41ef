# SPDX-License-Identifier: Apache-2.0
"""The rows of tests/matrix.py, and the table that it writes."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import matrix
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_range_of_torch_is_what_is_tested() -> None:
    setup = (ROOT / 'setup.py').read_text()
    pins = (ROOT / 'requirements.txt').read_text()
    for name in ('torch', 'torchvision'):
        accepted = Requirement(re.search(rf"'({name}>=.+)',", setup)[1])
        tested = {Version(getattr(row, name)) for row in matrix.ROWS.values()}
        low, high = min(tested), max(tested)
        bounds = {f'>={low.major}.{low.minor}'}
        if name == 'torch':  # which the torchvision that fits asks for
            pin = re.search('^torch==(.+)$', pins, re.M)[1]
            assert Version(pin) in tested
            bounds.add(f'<{high.major}.{high.minor + 1}')
        assert {str(each) for each in accepted.specifier} == bounds


def test_public_runs_have_the_same_rows() -> None:
    text = (ROOT / '.github/workflows/test.yml').read_text()
    job = yaml.safe_load(text)['jobs']['matrix']
    assert job['strategy']['matrix']['row'] == list(matrix.ROWS)


def test_table_of_the_documents() -> None:
    """It has rows in their order; a new result takes the old one's place."""
    page = matrix.TABLE.read_text()
    lines = page.split(matrix.BEGIN)[1].split(matrix.END)[0].splitlines()[2:]
    names = [line.split(' | ')[0][2:] for line in lines]
    assert names == [name for name in matrix.ROWS if name in names]
    versions = [line.split(' | ')[1:6] for line in lines]
    tested = [matrix.ROWS[name] for name in names]
    for row, (python, torch, mm, numpy, _) in zip(
        tested, versions, strict=True
    ):
        assert python.startswith(f'{row.python}.')
        assert torch == f'{row.torch} / {row.torchvision}'
        assert mm.startswith(f'{row.flavour}: ')
        assert fnmatch(numpy, row.numpy)
    # The ends of what setup.py accepts, and both flavours, are in the table.
    all_torch = {row.torch for row in matrix.ROWS.values()}
    assert {row.torch for row in tested} == all_torch
    assert {row.flavour for row in tested} == {'onedl', 'openmmlab'}
    assert matrix.insert(page, lines[-1] + '\n') == page
    assert matrix.insert(page, '| oldest | x |\n') == page.replace(
        lines[0], '| oldest | x |'
    )
