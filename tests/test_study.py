# SPDX-License-Identifier: Apache-2.0
"""docs/study.md shows the rows that are committed."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from statistics import median

import pandas as pd
import pytest

from lors_det.cli.sweep import read_sweep, write_summary

ROOT = Path(__file__).parents[1]
STUDIES = ROOT / 'studies'
SWEEPS = sorted(path.stem for path in STUDIES.glob('*.yml'))
MEASURED = [name for name in SWEEPS if (STUDIES / f'{name}.csv').is_file()]


def shown(name: str) -> str:
    text = (ROOT / 'docs/study.md').read_text()
    text = text.split(f'<!-- {name} -->\n')[1]
    return text.split(f'<!-- end of {name} -->')[0]


@pytest.mark.parametrize('name', MEASURED)
def test_table(name: str, tmp_path: Path) -> None:
    rows = Path(shutil.copy(STUDIES / f'{name}.csv', tmp_path))
    table, _ = write_summary(rows)
    assert shown(name) == table.read_text()
    assert (STUDIES / f'{name}.md').read_text() == table.read_text()


@pytest.mark.parametrize('name', SWEEPS)
def test_description(name: str) -> None:
    sweep = read_sweep(str(STUDIES / f'{name}.yml'))
    for config in sweep.configs.values():
        assert (ROOT / config).is_file(), config
    if name in MEASURED:
        rows = pd.read_csv(STUDIES / f'{name}.csv')
        assert set(rows['seed']) <= set(sweep.seeds)
        assert set(rows['model']) <= set(sweep.configs)


def test_uptraining() -> None:
    script = runpy.run_path(str(STUDIES / 'bccd_uptrain.py'))
    rows = pd.read_csv(STUDIES / 'bccd-uptrain.csv').to_dict('records')
    assert shown('bccd-uptrain') == script['table'](rows) + '\n'


def test_costs() -> None:
    results = json.loads((STUDIES / 'bccd-costs.json').read_text())['results']
    document = (ROOT / 'docs/study.md').read_text()
    configs = read_sweep(str(STUDIES / 'bccd-modes.yml')).configs
    dense = results[configs['dense']]['seconds']
    for name, config in configs.items():
        pairs = zip(results[config]['seconds'], dense, strict=True)
        ratio = median(seconds / first for seconds, first in pairs)
        peak = results[config]['peak_bytes'] / 1e6
        assert f'| {name} | {ratio:.2f} x | {peak:.0f} MB |' in document
