# SPDX-License-Identifier: Apache-2.0
"""List the configs of the package, and copy one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from lors_det.cli.configs import describe_configs, find_configs, init
from lors_det.errors import UsageError
from lors_det.files import load_config

NAME = 'lors-adamixer_mobilenetv2_bccd'
ADDRESS = 'lors_det::lors/lors-adamixer_r50_1x_coco.py'


def test_every_config_has_a_line() -> None:
    lines = describe_configs()
    assert len(lines) == len(find_configs()) > 60
    for line in lines:
        name, address, what = line.split(maxsplit=2)
        assert address.startswith('lors_det::')
        assert address.endswith(f'/{name}.py')
        assert len(what) > 3


def test_address() -> None:
    """Our tools, ``_base_`` and mmengine's hub find the same config."""
    ours = load_config(ADDRESS)
    assert ours.to_dict() == get_config(ADDRESS).to_dict()
    child = Config.fromstring(f'_base_ = {ADDRESS!r}', '.py')
    assert child.to_dict() == ours.to_dict()  # and in no scope of its own


@pytest.mark.parametrize(
    'name', [NAME, 'lors-dino-4scale_r50_8xb2-12e_coco', 'deit-tiny_digits']
)
def test_copy_is_the_same_config(name: str, tmp_path: Path) -> None:
    file = init(name, tmp_path)
    assert '_base_ =' not in file.read_text()
    original = load_config(str(find_configs()[name]))
    assert load_config(str(file)).to_dict() == original.to_dict()


def test_copy_with_another_root(tmp_path: Path) -> None:
    cfg = load_config(str(init(NAME, tmp_path, root=tmp_path)))
    root = f'{tmp_path}/demo/'
    assert cfg.train_dataloader.dataset.data_root == f'{root}bccd/'
    assert cfg.test_evaluator.ann_file.startswith(root)
    assert cfg.model.backbone.init_cfg.checkpoint.startswith(root)
    assert "'demo/" not in cfg.pretty_text


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{NAME}'"):
        init(NAME[:-1], tmp_path)
    with pytest.raises(UsageError, match='none is no folder'):
        init(NAME, tmp_path, root=tmp_path / 'none')
    (tmp_path / f'{NAME}.py').write_text('mine')
    with pytest.raises(UsageError, match='is there already'):
        init(NAME, tmp_path)


def test_unknown_command() -> None:
    code = 'from lors_det.cli.main import main; main()'
    result = subprocess.run(
        [sys.executable, '-c', code, 'trian'], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: no command 'trian'; did you mean 'train'?\n"
    )
