# SPDX-License-Identifier: Apache-2.0
"""What a user sees where no package of OpenMMLab is installed."""

from __future__ import annotations

import subprocess
import sys

COMMANDS = (
    'train c.py',
    'test c.py README.md',  # a file that is there
    'predict c.py c.pth i.jpg',
    'check c.py',
    'analyse c.py r.json',
    'report c.py',
    'benchmark c.py',
    'uptrain a.pth c.py',
    'convert a.pth b.pth',
    'explain c.py c.pth i.jpg',
    'init lors-adamixer_r50_1x_coco folder',
)
WITHOUT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
names = 'mmengine', 'mmcv', 'mmdet'
PathFinder.find_spec = lambda name, *args: (
    None if name.split('.')[0] in names else find(name, *args)
)
"""
RUN = f"""
from lors_det.cli.main import main
for command in {COMMANDS}:
    sys.argv = ['lors-det', *command.split()]
    try:
        main()
    except SystemExit as error:
        print(command, error)
import torch
from lors_det.lors import StackedLinear
stack = StackedLinear(3, 8, 8, dict(mode='lors', rank=2))
print(stack(torch.zeros(1, 8), 2).shape)
"""
LINE = (
    " is missing: `pip install 'lors_det[onedl]'` installs the maintained "
    "mmengine, mmcv and mmdet, `pip install 'lors_det[openmmlab]'` the "
    'original ones'
)


def run(code: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, '-c', WITHOUT + code], capture_output=True, text=True
    )
    return (result.stdout + result.stderr).splitlines()


def test_tools_say_what_to_install() -> None:
    """And lors_det.lors is pure torch."""
    lines = [line for line in run(RUN) if not line.startswith('config ')]
    assert lines.pop() == 'torch.Size([1, 8])', lines
    assert len(lines) == len(COMMANDS), lines
    for line, command in zip(lines, COMMANDS, strict=True):
        assert line.startswith(f'{command} error: mm')
        assert line.endswith(LINE)


def test_imports_say_what_to_install() -> None:
    *_, last = run('import lors_det; print("here")\nimport mmdet.apis')
    assert last.endswith(f'MissingPackageError: mmdet{LINE}')
    # A probe is no use of it.
    (line,) = run(
        'import lors_det\ntry:\n    import mmcv\n'
        'except ImportError as error:\n    print(error.name)'
    )
    assert line == 'mmcv'
