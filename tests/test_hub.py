# SPDX-License-Identifier: Apache-2.0
"""Detectors in folders and on the hub: lors_det/hub.py."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_lines import ROOT
from huggingface_hub import HfApi, constants

import lors_det.hub as hub
from lors_det.errors import UsageError
from lors_det.hub import HubPredictor
from lors_det.predict import Predictor

NAME = 'lors-adamixer_mobilenetv2_bccd'
FILES = ROOT / f'configs/bccd/{NAME}.py', ROOT / f'demo/checkpoints/{NAME}.pth'
IMAGE = ROOT / 'demo/bccd/images/BloodImage_00007.jpg'
CARD = {'data': 'the test part of BCCD', 'metrics': {'AP50': 81.4}}


@pytest.fixture(scope='module')
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('hub') / 'cells'
    predictor = HubPredictor(*FILES, device='cpu')
    predictor.save_pretrained(folder, model_card_kwargs=CARD)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return shutil.copytree(saved, tmp_path / 'copy')


def test_equal_after_loading(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit; and saved again, it is the same."""
    original = Predictor(*FILES, device='cpu')
    loaded = HubPredictor.from_pretrained(saved, device='cpu')
    assert loaded.classes == original.classes == ['RBC', 'WBC', 'Platelets']
    ours, theirs = (
        each(IMAGE)[0].pred_instances for each in (loaded, original)
    )
    assert len(ours) == 60
    for key in ('bboxes', 'scores', 'labels'):
        np.testing.assert_array_equal(ours[key], theirs[key])
    loaded.save_pretrained(tmp_path, model_card_kwargs=CARD)
    for file in ('README.md', 'config.json', 'model.safetensors'):
        assert (tmp_path / file).read_bytes() == (saved / file).read_bytes()
    assert len([*saved.iterdir()]) == 3


def test_card(saved: Path) -> None:
    """It has what it was given, the parameters, and a program that runs."""
    card = (saved / 'README.md').read_text()
    assert 'the test part of BCCD' in card
    assert '| AP50 | 81.4 |' in card
    assert 'in all 3,265,910' in card
    (program,) = re.findall(r'```python\n(.*?)```', card, re.S)
    names = dict[str, Any]()
    program = program.replace('FOLDER', str(saved))
    exec(program.replace('image.jpg', str(IMAGE)), names)
    assert len(names['samples'][0].pred_instances) == 60


def test_push(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixin uploads the three files; here its client is a stand-in."""
    pushed = {}

    def upload(self: HfApi, **options: Any) -> str:
        for path in Path(options['folder_path']).iterdir():
            pushed[path.name] = path.read_bytes()
        return f'pushed to {options["repo_id"]}'

    repo = type('Repo', (), {'repo_id': 'me/cells'})
    monkeypatch.setattr(HfApi, 'create_repo', lambda *_, **__: repo)
    monkeypatch.setattr(HfApi, 'upload_folder', upload)
    predictor = HubPredictor.from_pretrained(saved, device='cpu')
    done = predictor.push_to_hub('me/cells', model_card_kwargs=CARD)
    assert done == 'pushed to me/cells'
    assert pushed == {path.name: path.read_bytes() for path in saved.iterdir()}


def test_from_a_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files are fetched, whatever else is there."""
    calls = []

    def download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(saved)

    monkeypatch.setattr(hub, 'snapshot_download', download)
    HubPredictor.from_pretrained('me/cells', 'cpu', revision='v1')
    files = ['config.json', 'model.safetensors']
    assert calls == [('me/cells', {'allow_patterns': files, 'revision': 'v1'})]


@pytest.mark.parametrize('name', ['me/cells', './cells', 'a/b/c'])
def test_neither_folder_nor_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UsageError) as error:
        HubPredictor.from_pretrained(name)
    line = f'{name}: no folder, and not fetched from the hub: '
    assert str(error.value).startswith(line)
    assert '\n' not in str(error.value)


def change(*path: str | int, to: Any) -> Callable[[Path], None]:
    """Return what sets an entry of config.json."""

    def apply(folder: Path) -> None:
        file = folder / 'config.json'
        node = found = json.loads(file.read_text())
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to
        file.write_text(json.dumps(found))

    return apply


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (remove('config.json'), 'config.json does not exist'),
        (remove('model.safetensors'), 'model.safetensors does not exist'),
        (truncate, 'model.safetensors is no checkpoint, or cut off'),
        (write('config.json', '{"model'), 'expected JSON with model and'),
        (write('config.json', '[1]'), 'expected JSON with model and'),
        (write('config.json', '{"architectures": ["BertModel"]}'),
         'config.json: expected JSON with model and test_pipeline, as'),
        (change('model', 'decoder', 'num_stages', to=3),
         'model.safetensors: decoder.'),
        (change('model', 'backbone', 'frozen_stages', to=-2),
         'config.json: frozen_stages must be in range(-1, 8)'),
        (change('model', 'num_queries', to=50), 'lacks weights of the model'),
        (change('model', 'num_querys', to=50), "argument 'num_querys'"),
        (change('model', 'type', to='os.system'),
         "model.type='os.system': expected a plain word, or the name of a cl"),
        (change('model', 'backbone', 'type', to='evil'),
         'evil is not in the mmdet::model registry'),
        (change('model', 'backbone', 'type', to='evil.Net'),
         "model.backbone.type='evil.Net': expected a plain word"),
        (change('model', 'backbone', '_scope_', to='evil'),
         "model.backbone._scope_='evil': expected a plain word"),
        (change('test_pipeline', 1, 'type', to='evil'),
         'evil is not in the mmdet::transform registry'),
        (change('test_pipeline', 0, 'type', to='mmdet.datasets.evil'),
         "test_pipeline.0.type='mmdet.datasets.evil': expected a plain word"),
        (change('model', 'init_cfg', to={'checkpoint': 'weights.pth'}),
         "model.init_cfg.checkpoint='weights.pth': expected a plain word"),
    ],
)  # fmt: skip
def test_bad_folders(
    damage: Callable[[Path], None], message: str, folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One line; and modules of the folder are never imported."""
    (folder / 'evil').mkdir()
    for name in ('__init__', 'registry'):
        (folder / f'evil/{name}.py').write_text('class Net: ...\n')
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    damage(folder)
    with pytest.raises(UsageError) as error:
        HubPredictor.from_pretrained(folder, device='cpu')
    assert message in str(error.value)
    assert '\n' not in str(error.value)
    assert 'evil' not in sys.modules


def test_what_is_there_stays(saved: Path) -> None:
    predictor = HubPredictor.from_pretrained(saved, device='cpu')
    with pytest.raises(UsageError, match='cells: is there already; name ano'):
        predictor.save_pretrained(saved, model_card_kwargs=CARD)
    assert (saved / 'config.json').exists()


def test_a_card_needs_numbers(saved: Path, tmp_path: Path) -> None:
    predictor = HubPredictor.from_pretrained(saved, device='cpu')
    with pytest.raises(UsageError, match='expected data and metrics'):
        predictor.save_pretrained(tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    monkeypatch.delitem(sys.modules, 'lors_det.hub')
    with pytest.raises(UsageError, match=r"pip install 'lors_det\[hub\]'"):
        importlib.import_module('lors_det.hub')
