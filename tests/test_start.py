# SPDX-License-Identifier: Apache-2.0
"""The notebook, and what the container is made of."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from string import Template
from typing import Any

import pytest
from helpers.command_lines import ROOT
from PIL import Image

QUICK = ['train_cfg.max_iters=2'] + [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val')
    for option in ('num_workers=0', 'persistent_workers=False')
]


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run, but for those of the network; training takes 2 steps."""
    for name in ('configs', 'demo', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, 'environ', dict(os.environ))
    names = dict[str, Any]()
    for cell in json.loads((ROOT / 'demo/start.ipynb').read_text())['cells']:
        code = ''.join(cell['source'])
        tags = cell['metadata'].get('tags', [])
        if cell['cell_type'] != 'code' or 'network' in tags:
            continue
        assert cell['outputs'] == []
        if not code.startswith('%run '):
            exec(code, names)
            continue
        line = code.removeprefix('%run ').replace('\\\n', ' ')
        command = shlex.split(Template(line).substitute(names))
        monkeypatch.setattr(sys, 'argv', [*command, *QUICK])
        runpy.run_path(command[0], run_name='__main__')
    assert len(names['found']) > 5
    assert Image.open('query.png').width > 500
    assert Path('work_dirs/start/iter_2.pth').exists()


def test_container() -> None:
    """Its files exist, and it installs what setup.py has."""
    text = (ROOT / 'Dockerfile').read_text()
    ignored = (ROOT / '.dockerignore').read_text().split()
    paths = re.findall(r'\./([\w/-]+)', text)
    assert paths == ['requirements/opencv-python']
    assert (ROOT / paths[0] / 'pyproject.toml').exists()
    needed = ('setup.py', 'README.md', 'model-index.yml', 'requirements')
    for name in (*needed, 'configs', 'demo', 'lors_det', 'tools'):
        assert (ROOT / name).exists()
        assert name not in ignored
    (extras,) = re.findall(r"'\.\[(.*)\]'", text)
    known = (ROOT / 'setup.py').read_text()
    assert all(f"'{extra}': [" in known for extra in extras.split(','))
    python = re.findall(r'FROM python:([\d.]+)', text)
    image = json.loads((ROOT / '.devcontainer/devcontainer.json').read_text())
    assert python == re.findall(r'python:([\d.]+)', image['image'])
    assert sys.version_info >= tuple(map(int, python[0].split('.')))
