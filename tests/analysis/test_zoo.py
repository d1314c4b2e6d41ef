# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import modelindex
import pytest
from mmengine.config import Config

from lors_det.analysis import zoo
from lors_det.analysis.zoo import read_index, zoo_page

ROOT = Path(__file__).parents[2]
INDEX = ROOT / 'model-index.yml'


def test_every_config_of_the_zoo_is_listed_once() -> None:
    for name, models in read_index(INDEX).items():
        folder = (ROOT / name).parent
        configs = sorted(path.name for path in folder.glob('*.py'))
        assert sorted(Path(m['Config']).name for m in models) == configs
        for model in models:
            assert Path(model['Config']).stem == model['Name']
            cfg = Config.fromfile(ROOT / model['Config'])
            assert model['Metadata']['Epochs'] == cfg.train_cfg.max_epochs


def test_the_index_is_readable_by_mim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the library that MIM reads model indices with."""
    monkeypatch.chdir(ROOT)
    index = modelindex.load(str(INDEX))
    index.build_models_with_collections()
    listed = sum(map(len, read_index(INDEX).values()))
    assert len(index.models) == listed
    assert all((ROOT / model.config).is_file() for model in index.models)
    assert {c.name for c in index.collections} == {
        'AdaMixer', 'LORS-AdaMixer',
    }  # fmt: skip


def test_the_page_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model has a row; those of the first of each folder are current."""
    page = (ROOT / 'docs/model_zoo.md').read_text().splitlines()
    files = read_index(INDEX)
    names = [model['Name'] for models in files.values() for model in models]
    rows = [line for line in page if line.startswith('| [')]
    assert [re.match(r'\| \[(.*?)\]', row)[1] for row in rows] == names
    firsts = {file: models[:1] for file, models in files.items()}
    monkeypatch.setattr(zoo, 'read_index', lambda _: firsts)
    for line in cells(zoo.zoo_page(ROOT).splitlines()):
        assert line in cells(page), 'python tools/model_zoo.py writes it'


def cells(lines: list[str]) -> list[list[str]]:
    """The lines of a page; of tables, without the widths of columns."""
    return [re.sub('[ -]+', ' ', line).split('|') for line in lines]


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))  # JSON is YAML


def test_what_is_measured_is_shown(tmp_path: Path) -> None:
    config = ROOT / 'configs/demo/lors-adamixer_r18_coco-tiny.py'
    cfg = Config.fromfile(config)
    (tmp_path / 'configs/a').mkdir(parents=True)
    cfg.dump(tmp_path / 'configs/a/small_1x.py')
    model = {
        'Name': 'small_1x',
        'Config': 'configs/a/small_1x.py',
        'Metadata': {'Published box AP': 41.5},
        'Results': [{'Metrics': {'box AP': 41.3}}],
    }
    write(tmp_path / 'configs/a/metafile.yml', {'Models': [model]})
    write(tmp_path / 'model-index.yml', {'Import': ['configs/a/metafile.yml']})
    row = zoo_page(tmp_path).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip('|').split('|')]
    assert cells[:7] == [
        '[small_1x](../configs/a/small_1x.py)', '3', '40', '12 epochs',
        'lors, r 8, K rising', 'lors, r 8', '2.8',
    ]  # fmt: skip
    assert cells[-2:] == ['41.5', '41.3']
