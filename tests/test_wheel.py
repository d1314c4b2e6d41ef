# SPDX-License-Identifier: Apache-2.0
"""The wheel: what it writes and asks for, and its command away from here."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lors_det.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
EXTRAS = {
    'demo', 'digits', 'hub', 'onedl', 'onnx', 'openmmlab', 'openvino',
}  # fmt: skip


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves files where it builds."""
    source = tmp_path_factory.mktemp('source')
    for name in ('lors_det', 'configs', 'tools'):
        ignore = shutil.ignore_patterns('__pycache__', '.mim')
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    subprocess.run(
        [*PIP, 'wheel', '--no-deps', '--no-build-isolation', '-w', source,
         source],
        check=True,
    )  # fmt: skip
    return next(source.glob('*.whl'))


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith('/METADATA'))
        metadata = Parser().parsestr(archive.read(name).decode())
    return [Requirement(text) for text in metadata.get_all('Requires-Dist')]


def test_writes_over_no_file_of_another_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split('/')[0] for name in archive.namelist()}
    assert len(tops) == 2
    assert all(top.startswith('lors_det') for top in tops)


def test_asks_for_neither_flavour_of_mmdet(wheel: Path) -> None:
    """One is written over by the other, so that each is a choice."""
    found = requirements(wheel)
    needed = {r.name for r in found if not r.marker}
    assert needed == {
        'torch', 'torchvision', 'pandas', 'pillow', 'pycocotools',
        'safetensors', 'tqdm',
    }  # fmt: skip
    markers = {str(r.marker) for r in found if r.marker}
    assert markers == {f'extra == "{extra}"' for extra in EXTRAS}


ORIGINAL = {'mmengine': 'mmengine', 'mmcv': 'mmcv-lite', 'mmdet': 'mmdet'}


def install_stand_in(
    site: Path, name: str, version: str, files: Iterable[str] = ()
) -> None:
    """Write what pip sees as a distribution; each file holds its own name."""
    info = f'{name.replace("-", "_")}-{version}.dist-info'
    metadata = f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
    contents = {file: file for file in files}
    contents[f'{info}/METADATA'] = metadata
    contents[f'{info}/INSTALLER'] = 'pip\n'
    contents[f'{info}/RECORD'] = ''.join(
        f'{file},,\n' for file in (*contents, f'{info}/RECORD')
    )
    for file, content in contents.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(content)


def digests(folder: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def test_installs_beside_the_original_packages(
    wheel: Path, tmp_path: Path
) -> None:
    """pip finds all that is required and writes nothing but our files.

    The environment has the names of the files of mmengine, mmcv and mmdet,
    and an empty distribution for each other requirement;
    ``tests/matrix.py`` does the same with the real ones.
    """
    venv.create(tmp_path, with_pip=False)
    (site,) = (tmp_path / 'lib').glob('python*/site-packages')
    for package, name in ORIGINAL.items():
        folder = Path(importlib.import_module(package).__file__).parent
        files = [
            str(path.relative_to(folder.parent))
            for path in folder.rglob('*.*')
            if path.is_file() and path.suffix != '.pyc'
        ]
        assert len(files) > 100
        install_stand_in(site, name, '3.0', files)
    for requirement in requirements(wheel):
        if not requirement.marker:
            (lowest,) = (
                each.version
                for each in requirement.specifier
                if each.operator == '>='
            )
            install_stand_in(site, requirement.name, lowest)
    before = digests(site)
    (python,) = (tmp_path / 'bin').glob('python')
    pip = [*PIP, '--isolated', '--python', str(python)]
    install = [*pip, 'install', '--no-index']

    # What is beside the tests is not in that environment.
    clean = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([*install, wheel], check=True, env=clean)
    after = digests(site)
    assert {path: after.get(path) for path in before} == before
    ours = {path.relative_to(site).parts[0] for path in after.keys() - before}
    assert len(ours) == 2  # the package, and what pip notes about it
    assert all(name.startswith('lors_det') for name in ours)

    more = subprocess.run(
        [*install, f'{wheel}[onedl]'],
        env=clean,
        capture_output=True,
        text=True,
    )
    assert more.returncode == 1
    assert 'No matching distribution found for onedl-' in more.stderr
    assert digests(site) == after


def test_ranges_hold_what_was_tested(wheel: Path) -> None:
    """requirements.txt is within them; of openmmlab, the matrix tells."""
    lines = (ROOT / 'requirements.txt').read_text().splitlines()
    pins = (line.split('#')[0].strip() for line in lines if '==' in line)
    pinned = {
        canonicalize_name(name): version
        for name, version in (pin.split('==') for pin in pins)
    }
    for requirement in requirements(wheel):
        name = canonicalize_name(requirement.name)
        if requirement.marker is None or 'onedl' in str(requirement.marker):
            assert name in pinned
        if name in pinned:
            assert requirement.specifier.contains(pinned[name]), requirement


def test_every_tool_has_its_command() -> None:
    tools = {path.stem for path in (ROOT / 'tools').glob('*.py')}
    tools.remove('model_zoo')  # it writes a page of this repository
    assert {file for file, _ in COMMANDS.values()} == tools


@pytest.mark.slow
def test_command_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    """From the list of configs to the first steps of the demo."""
    target = tmp_path / 'installed'
    subprocess.run(
        [*PIP, 'install', '--no-deps', '--target', target, wheel], check=True
    )

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [target / 'bin/lors-det', *arguments],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(target)},
            capture_output=True,
            text=True,
        )
        output = result.stdout + result.stderr
        assert result.returncode == 0, output[-4000:]
        return output

    name = 'lors-adamixer_mobilenetv2_bccd'
    assert f'\n{name} ' in run('configs')
    steps = [
        '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=9',
        'train_dataloader.num_workers=0', 'default_hooks.logger.interval=1',
        'train_dataloader.persistent_workers=False',
    ]  # fmt: skip
    (tmp_path / 'demo').symlink_to(ROOT / 'demo')  # data are not in it
    (tmp_path / 'mine.py').write_text(f"_base_ = 'lors_det::bccd/{name}.py'")
    assert 'Iter(train) [2/2]' in run('train', 'mine.py', *steps)
    assert (tmp_path / 'work_dirs/mine/iter_2.pth').is_file()
