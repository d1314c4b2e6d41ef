# SPDX-License-Identifier: Apache-2.0
"""What a reader and an installer of the project rely on."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lors_det.version import __version__

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ('benchmarks', 'configs', 'lors_det', 'tests', 'tools')
    for path in sorted((ROOT / folder).rglob('*.py'))
    if '.mim' not in path.parts
]


def test_sources_are_licensed() -> None:
    for path in SOURCES:
        lines = path.read_text().splitlines()
        if path.parts[len(ROOT.parts)] != 'configs':
            assert lines[0] == '# SPDX-License-Identifier: Apache-2.0', path


@pytest.mark.parametrize(
    'tool', sorted(ROOT.glob('tools/*.py')), ids=lambda path: path.stem
)
def test_help_needs_no_torch(tool: Path) -> None:
    """It is there at once."""
    code = (
        'import runpy, sys\n'
        'for name in ("torch", "mmcv", "mmdet", "mmengine", "pandas"):\n'
        '    sys.modules[name] = None\n'
        f'sys.argv = ["{tool.name}", "--help"]\n'
        f'runpy.run_path({str(tool)!r}, run_name="__main__")\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert 'usage: ' in result.stdout


def test_layers_import_downwards_only() -> None:
    allowed = {
        'compat': {'errors'},
        'lors': set(),
        'adamixer': {'lors', 'compat'},
        'vit': {'lors'},
        'datasets': {'compat', 'errors', 'files'},
        'hooks': {'lors', 'datasets', 'errors', 'files', 'safe_load'},
        'convert': {
            'lors', 'adamixer', 'vit', 'errors', 'files', 'safe_load',
        },
        'analysis': {
            'lors', 'adamixer', 'errors', 'files', 'safe_load', 'predict',
            'precision',
        },
    }  # fmt: skip
    for path in (ROOT / 'lors_det').rglob('*.py'):
        layer = path.relative_to(ROOT / 'lors_det').parts[0]
        if layer in allowed and '.mim' not in path.parts:
            found = re.findall(
                r'(?:from|import) lors_det\.(\w+)', path.read_text()
            )
            assert set(found) <= allowed[layer] | {layer}, path


def test_one_opencv() -> None:
    """Two OpenCV wheels in one environment break each other."""
    wheels = {
        dist.metadata['Name']
        for dist in importlib.metadata.distributions()
        if any(
            file.parts[0] == 'cv2' for file in dist.files or [] if file.parts
        )
    }
    assert wheels == {'opencv-python-headless'}


def test_versions_agree() -> None:
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    assert re.findall(r'^## \[(.+?)\]', changelog, re.M)[0] == __version__
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'version: {__version__}\n' in citation


def test_mim_finds_configs_and_tools() -> None:
    import lors_det

    mim = Path(lors_det.__file__).parent / '.mim'
    assert (mim / 'configs/lors/lors-adamixer_r50_1x_coco.py').is_file()
    assert (mim / 'tools/train.py').is_file()
    assert (mim / 'model-index.yml').is_file()


@pytest.mark.parametrize('tool', ['slurm_train.sh', 'slurm_test.sh'])
def test_slurm_launchers(tool: str, tmp_path: Path) -> None:
    """They hand srun the right command (a stand-in for srun prints it)."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    checkpoint = ['c.pth'] if tool == 'slurm_test.sh' else []
    result = subprocess.run(
        [f'tools/{tool}', 'part', 'job', 'a config.py', *checkpoint, '--x'],
        cwd=ROOT,
        env={
            'PATH': f'{tmp_path}:/usr/bin:/bin',
            'GPUS': '4',
            'SRUN_ARGS': '--mem 8G',
        },
        capture_output=True,
        text=True,
    )
    script = tool.replace('slurm_', '').replace('.sh', '.py')
    assert result.stdout.splitlines() == [
        '--partition=part', '--job-name=job', '--gres=gpu:4', '--ntasks=4',
        '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--mem', '8G', 'python', '-u', f'tools/{script}', 'a config.py',
        *checkpoint, '--launcher', 'slurm', '--x',
    ]  # fmt: skip


@pytest.mark.parametrize(
    'tool',
    ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'],
)
def test_launchers_say_how_they_are_used(tool: str) -> None:
    result = subprocess.run(
        [f'tools/{tool}'], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith(f'usage: tools/{tool} ')
