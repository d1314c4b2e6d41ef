# SPDX-License-Identifier: Apache-2.0
"""Test in environments of other versions; for the table of docs/install.md.

    python tests/matrix.py [ROW ...]

Needs uv, which finds or fetches each Python, and takes what is said in
ROWS. Where nothing is said, versions are the newest. An environment is removed
before the next is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TABLE = ROOT / 'docs/install.md'
BEGIN, END = '<!-- tests/matrix.py -->\n', '<!-- end -->'


class Row(NamedTuple):
    """An environment."""

    python: str
    torch: str
    torchvision: str
    flavour: str  # the extra of setup.py
    numpy: str
    extension: bool  # whether mmcv has an _ext, of our ops


ROWS = {
    'oldest': Row('3.11', '2.7.1', '0.22.1', 'onedl', '1.26.*', False),
    'original': Row('3.11', '2.11.0', '0.26.0', 'openmmlab', '2.*', False),
    'compiled': Row('3.12', '2.11.0', '0.26.0', 'onedl', '2.*', True),
    'mixed': Row('3.10', '2.7.1', '0.22.1', 'openmmlab', '1.26.*', True),
    'newest': Row('3.13', '2.14.1', '0.29.1', 'onedl', '2.*', False),
    'newest-original': Row(
        '3.13', '2.14.1', '0.29.1', 'openmmlab', '2.*', False
    ),
}
#: What depends on the versions of others, and takes minutes.
SUITE = """
    adamixer/test_criterion.py adamixer/test_detector.py
    adamixer/test_mixing.py compat datasets lors vit/test_model.py
    test_data_parallel.py test_golden.py test_method_document.py
    test_mmdet_workflows.py test_safe_load.py
""".split()
TOOLS = (
    'hypothesis', 'pytest', 'scikit-learn', 'setuptools', 'tensorboard',
    'wheel',
)  # fmt: skip
#: What a compiled mmcv._ext is for the tests: a file that has ops.
EXTENSION = """
from functools import partial
from lors_det.compat import mmcv_ext, ops

def __getattr__(name):
    if name.startswith('_'):
        raise AttributeError(name)
    return getattr(ops, name, partial(mmcv_ext._raise_missing, name))
"""


def run(*command: str | Path) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f'{done.stdout}\nfailed: {" ".join(map(str, command))}')
    return done.stdout


def digests(folder: Path) -> dict[Path, str]:
    """Hash the files of mmengine, mmcv and mmdet, by name."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for package in ('mmengine', 'mmcv', 'mmdet')
        for path in (folder / package).rglob('*')
        if path.is_file() and path.suffix != '.pyc'
    }


def make(env: Path, row: Row) -> Path:
    """Make an environment; its Python."""
    python = env / 'bin/python'
    run('uv', 'venv', '-q', '--seed', '--python', row.python, env)
    run('uv', 'pip', 'install', '-q', '--python', python,
        '-r', 'setup.py', '--extra', row.flavour, f'torch=={row.torch}',
        f'torchvision=={row.torchvision}', f'numpy=={row.numpy}',
        *TOOLS)  # fmt: skip
    (site,) = (env / 'lib').glob('python*/site-packages')
    before = digests(site)
    # Nothing that it requires is missing.
    run(python, '-m', 'pip', 'install', '-q', '--no-index',
        '--no-build-isolation', '-e', '.')  # fmt: skip
    run('uv', 'pip', 'check', '--python', python)
    assert before
    assert before == digests(site), 'files of others were changed'
    if row.extension:
        (site / 'mmcv/_ext.py').write_text(EXTENSION)
    return python


def test(python: Path) -> dict[str, int]:
    """Run the tests; the number of those that passed, failed, ..."""
    done = subprocess.run(
        [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--tb=short',
         *(f'tests/{name}' for name in SUITE)],
        cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        print(done.stdout)
    last = done.stdout.splitlines()[-1]
    found = re.findall(r'(\d+) (passed|failed|skipped|error)', last)
    return {kind: int(number) for number, kind in found}


def line(name: str, python: Path, counts: dict[str, int]) -> str:
    """Return the row of the table."""
    listed = run('uv', 'pip', 'list', '--python', python, '--format', 'json')
    versions = {each['name']: each['version'] for each in json.loads(listed)}
    row = ROWS[name]
    mm = {
        'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
        'openmmlab': ('mmengine', 'mmcv-lite', 'mmdet'),
    }[row.flavour]
    cells = [
        name,
        run(python, '-c', 'import platform; print(platform.python_version())'),
        f'{versions["torch"]} / {versions["torchvision"]}',
        f'{row.flavour}: {" / ".join(versions[key] for key in mm)}',
        versions['numpy'],
        'a stand-in' if row.extension else 'none',
        str(counts.get('passed', 0)),
        str(counts.get('failed', 0) + counts.get('error', 0)),
        str(date.today()),
    ]
    return f'| {" | ".join(cell.strip() for cell in cells)} |\n'


def insert(page: str, new: str) -> str:
    """Put a row into the table of a page, for the one of its name, if any."""
    head, rest = page.split(BEGIN)
    table, tail = rest.split(END)
    title, rule, *lines = table.splitlines(keepends=True)
    by_name = {text.split(' | ')[0][2:]: text for text in [*lines, new]}
    ordered = [by_name[name] for name in ROWS if name in by_name]
    return ''.join([head, BEGIN, title, rule, *ordered, END, tail])


def main() -> None:
    """Parse the command line, and run rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('rows', nargs='*', metavar='ROW', default=list(ROWS))
    failed = False
    for name in parser.parse_args().rows:
        print(f'== {name}: {ROWS[name]}', flush=True)
        with tempfile.TemporaryDirectory() as folder:
            python = make(Path(folder, 'env'), ROWS[name])
            counts = test(python)
            new = line(name, python, counts)
        print(new, flush=True)
        TABLE.write_text(insert(TABLE.read_text('utf-8'), new), 'utf-8')
        failed |= set(counts) != {'passed'}
    sys.exit(failed)


if __name__ == '__main__':
    main()
