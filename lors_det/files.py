# SPDX-License-Identifier: Apache-2.0
"""Files: atomic writes, configs, and checks before use."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from lors_det.errors import UsageError, one_line

if TYPE_CHECKING:
    from mmengine.config import Config

PART = '.part'
#: Where configs, tools and the model index lie: see setup.py.
MIM = Path(__file__).parent / '.mim'
PACKAGE = 'lors_det::'


def atomic_write(
    path: str | os.PathLike[str], content: str | bytes | memoryview
) -> None:
    """Write a file that is complete on the disk, or not there at all.

    Args:
        path: The file; what was there stays until the new one is safe.
        content: What it will hold; text is written as UTF-8.

    Raises:
        UsageError: If it cannot be written, as on a full disk.
    """
    target = Path(path)
    part = target.with_name(target.name + PART)
    data = content.encode() if isinstance(content, str) else content
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)  # or the new name may be lost with the power
        os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UsageError(
            f'{target} cannot be written: {error.strerror}'
        ) from None


def write_between_marks(
    path: str | os.PathLike[str], begin: str, end: str, text: str
) -> None:
    """Replace the part of a text file between two marks.

    Args:
        path: The file.
        begin: Mark before the part; stays.
        end: Mark after the part; stays.
        text: The new part.

    Raises:
        UsageError: If the file is missing or does not hold both marks.
    """
    check_file(os.fspath(path), 'document')
    before, found, rest = Path(path).read_text('utf-8').partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise UsageError(f'{path}: expected the lines {begin!r} and {end!r}')
    atomic_write(path, f'{before}{begin}{text}{end}{after}')


def check_file(path: str, what: str) -> None:
    """Check that a local file is there and holds something.

    Args:
        path: Path or URL; only paths are checked.
        what: What the file is, for the error message.

    Raises:
        UsageError: If it is missing, not a file, empty or unreadable.
    """
    if '://' in path:
        return
    if Path(path).is_dir():
        raise UsageError(f'{what}: {path} is a folder, expected a file')
    if not Path(path).is_file():
        raise UsageError(f'{what}: {path} does not exist')
    if not Path(path).stat().st_size:
        raise UsageError(f'{what}: {path} is empty')
    if not os.access(path, os.R_OK):
        raise UsageError(f'{what}: {path} cannot be read: no permission')


def load_config(path: str, imports: bool = True) -> Config:
    """Read a config file.

    Args:
        path: The file, or ``lors_det::PATH`` for one of the package.
        imports: Whether to import what its ``custom_imports`` name.

    Raises:
        UsageError: If it, or one of its bases, cannot be read.
    """
    from mmengine.config import Config  # late: most tools need none

    if path.startswith(PACKAGE):
        path = str(MIM / 'configs' / path.removeprefix(PACKAGE))
    check_file(path, 'CONFIG')
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
    except RecursionError:
        raise UsageError(
            f'CONFIG: {path}: its _base_ files lead back to themselves'
        ) from None
    except Exception as error:  # the file may run any code
        raise UsageError(f'CONFIG: {path}: {one_line(error)}') from error
    if imports:
        import_modules(cfg)
    return cfg


def import_modules(cfg: Config) -> None:
    """Import what a config's ``custom_imports`` name.

    Args:
        cfg: The whole config.

    Raises:
        UsageError: If that fails.
    """
    from mmengine.utils import import_modules_from_strings  # late, as above

    wanted = cfg.get('custom_imports')
    try:
        if wanted:
            import_modules_from_strings(**wanted)
    except Exception as error:  # a module may run any code
        raise UsageError(
            f'CONFIG: custom_imports={wanted}: {one_line(error)}'
        ) from error


def find_damage(path: str | os.PathLike[str]) -> str | None:
    """Verify the checksums (CRC-32) that torch writes but does not verify.

    Args:
        path: The file.

    Returns:
        The damage in a few words; None if all checksums are right,
        or if its format has none.
    """
    try:
        with open(path, 'rb') as file:
            if file.read(4) != b'PK\x03\x04':
                return None
        if not zipfile.is_zipfile(path):
            return 'its end is missing'
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # zipfile has many
        return str(error) or type(error).__name__
    return entry and f'wrong checksum of {entry}'


def check_output(path: str, option: str) -> None:
    """Check that an output overwrites nothing.

    Args:
        path: File or folder to be written.
        option: The option that named it.

    Raises:
        UsageError: If the file is there, or the folder holds something.
    """
    target = Path(path)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(
            f'{option} {path}: is there already; name another, or add '
            '--overwrite'
        )
