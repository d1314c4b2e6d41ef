# SPDX-License-Identifier: Apache-2.0
"""The configs that come with the package: list them, copy one.

Imports no torch before a config is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lors_det.cli.boundary import suggest
from lors_det.errors import UsageError
from lors_det.files import MIM, atomic_write, check_output, load_config

CONFIGS = MIM / 'configs'


def find_configs() -> dict[str, Path]:
    """Return the files of all configs that a run can take, by their names."""
    files = sorted(CONFIGS.rglob('*.py'))
    bases = CONFIGS / '_base_'
    return {path.stem: path for path in files if bases not in path.parents}


def describe_configs() -> list[str]:
    """Describe each config in a line: name, ``lors_det::PATH``, what it is.

    What it is, is the first sentence of its comment, or else the title of its
    folder.
    """
    rows = []
    for name, path in find_configs().items():
        comment = re.match(r'(?:# .*\n)+', path.read_text('utf-8'))
        text = comment[0].replace('# ', '') if comment else ''
        readmes = (folder / 'README.md' for folder in path.parents)
        if not text:
            readme = next(filter(Path.is_file, readmes))
            text = readme.read_text('utf-8').split('\n')[0].lstrip('# ')
        sentence = re.split(r'\.\s|: |\.$', ' '.join(text.split()))[0]
        address = f'lors_det::{path.relative_to(CONFIGS).as_posix()}'
        rows.append((name, address, sentence))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f'{name:{widths[0]}}  {address:{widths[1]}}  {sentence}'
        for name, address, sentence in rows
    ]


def init(
    name: str, folder: Path, root: Path | None = None, overwrite: bool = False
) -> Path:
    """Copy a config, with all its bases, into one file.

    Args:
        name: Of the config.
        folder: Where to write it.
        root: Folder in which ``data/`` and ``demo/`` lie; None for the one in
            which a run is started.
        overwrite: Whether the file may be there already.

    Returns:
        The file.

    Raises:
        UsageError: If there is no such config, no such root, or the file is
            there already.
    """
    configs = find_configs()
    if name not in configs:
        near = suggest(name, configs)
        raise UsageError(
            f'NAME: no config {name!r}{near}; `lors-det configs` lists them'
        )
    if root and not root.is_dir():
        raise UsageError(f'--root {root} is no folder')
    target = folder / f'{name}.py'
    if not overwrite:
        check_output(str(target), 'DIR:')
    cfg = load_config(str(configs[name]), imports=False)
    if root:
        cfg = type(cfg)(_moved(cfg.to_dict(), f'{root.resolve()}/'))
    text = f'# {name} of lors_det, with its bases.\n{cfg.pretty_text}'
    atomic_write(target, text)
    return target


def _moved(value: Any, root: str) -> Any:
    """Return a value with the paths into data/ and demo/ made absolute."""
    if isinstance(value, dict):
        return {key: _moved(each, root) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(each, root) for each in value)
    inside = isinstance(value, str) and value.startswith(('data/', 'demo/'))
    return root + value if inside else value
