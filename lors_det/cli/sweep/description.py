# SPDX-License-Identifier: Apache-2.0
"""The file that describes a sweep."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import DictAction

from lors_det.errors import UsageError

SEED = 'randomness.seed'
# Set by the sweep for every run.
OWN_ARGUMENTS = (
    '--work-dir',
    '--resume',
    '--overwrite',
    '--cfg-options',
)


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Args:
        configs: Config files, as tools/train.py takes them.
        seeds: Random seeds; every cell is trained with each.
        grid: Values to try, by the dotted key of the setting.
        options: Settings that are the same in all runs, by dotted key.
        arguments: Further arguments of tools/train.py, such as ``--amp``.
        gpus: Processes of a run; more than one through tools/dist_train.sh.
        command: What is put before the command of a run, such as ``srun``.
    """

    configs: list[str]
    seeds: list[int]
    grid: dict[str, list[Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    gpus: int = 1
    command: list[str] = field(default_factory=list)


def read_sweep(path: str) -> Sweep:
    """Read the description of a sweep.

    Args:
        path: A YAML file with the fields of `Sweep`.

    Raises:
        UsageError: If the file is missing or wrong; the text names the key.
    """
    if not Path(path).is_file():
        raise UsageError(f'SWEEP: {path} does not exist')
    try:
        found = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = ' '.join(str(error).split())
        raise UsageError(f'SWEEP: {path} is no YAML: {text}') from None
    known = [entry.name for entry in fields(Sweep)]
    if not isinstance(found, dict):
        raise UsageError(
            f'SWEEP: {path}: expected keys out of {known}, got {found!r}'
        )
    for key in found:
        if key not in known:
            raise UsageError(f'{key}: no key of a sweep; known are {known}')
    grid = _mapping(found, 'grid')
    options = _mapping(found, 'options')
    for key, values in grid.items():
        grid[key] = [
            _settle(f'grid.{key}', value)
            for value in _entries(f'grid.{key}', values, 'values')
        ]
        check_unique(f'grid.{key}', map(repr, grid[key]))
        if key in options:
            raise UsageError(f'options.{key}: is in the grid already')
    for key, value in options.items():
        options[key] = _settle(f'options.{key}', value)
    if SEED in (*grid, *options):
        raise UsageError(f'{SEED}: give the seeds under seeds')
    sweep = Sweep(
        configs=_entries('configs', found.get('configs'), 'files', str),
        seeds=_entries('seeds', found.get('seeds'), 'integers', int),
        grid=grid,
        options=options,
        arguments=_entries(
            'arguments', found.get('arguments', []), 'strings', str, least=0
        ),
        gpus=found.get('gpus', 1),
        command=_entries(
            'command', found.get('command', []), 'strings', str, least=0
        ),
    )
    check_unique('configs', (str(Path(c).resolve()) for c in sweep.configs))
    check_unique('seeds', map(str, sweep.seeds))
    if type(sweep.gpus) is not int or sweep.gpus < 1:
        raise UsageError(f'gpus={sweep.gpus!r}: expected an integer above 0')
    for argument in sweep.arguments:
        if argument.split('=')[0] in OWN_ARGUMENTS:
            raise UsageError(f'arguments: the sweep itself sets {argument}')
    return sweep


def option_text(value: Any) -> str:
    """Write a value as ``--cfg-options`` reads it.

    Args:
        value: A scalar, or a list of such values.
    """
    if isinstance(value, list):
        return '[' + ','.join(map(option_text, value)) + ']'
    return str(value)


def check_unique(key: str, names: Iterable[str]) -> None:
    """Refuse what would be trained twice, or into the same folder.

    Args:
        key: Key of the sweep file, for the error message.
        names: What must not repeat.

    Raises:
        UsageError: If it does.
    """
    seen = set()
    for name in names:
        if name in seen:
            raise UsageError(f'{key}: {name} is there twice')
        seen.add(name)


def _settle(key: str, value: Any) -> Any:
    """Read a value as the command line will: '4e-4' is a number there."""
    if isinstance(value, list):
        settled: Any = [_settle(key, entry) for entry in value]
        same = repr(_parse(key, option_text(settled))) == repr(settled)
    else:
        settled = _parse(key, str(value))
        same = repr(settled) == repr(value) or (
            isinstance(value, str) and not isinstance(settled, str)
        )
    if not same:
        raise UsageError(
            f'{key}={value!r}: --cfg-options cannot express this value; put '
            'it into a config file'
        )
    return settled


def _parse(key: str, text: str) -> Any:
    """What ``--cfg-options KEY=text`` gives."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='+', action=DictAction)
    try:
        options = parser.parse_args(['--options', f'key={text}']).options
    except AssertionError as error:
        raise UsageError(f'{key}={text}: {error}') from None
    return options['key']


def _mapping(found: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A part of the file whose keys are settings."""
    value = found.get(key) or {}
    if not isinstance(value, dict) or not all(
        isinstance(name, str) for name in value
    ):
        raise UsageError(
            f'{key}={value!r}: expected a mapping from config keys'
        )
    return dict(value)


def _entries(
    key: str,
    value: Any,
    what: str,
    kind: type[Any] = object,
    least: int = 1,
) -> list[Any]:
    """A part of the file that is a list."""
    if (
        not isinstance(value, list)
        or len(value) < least
        or not all(isinstance(entry, kind) for entry in value)
        or (kind is int and any(type(v) is bool or v < 0 for v in value))
    ):
        raise UsageError(
            f'{key}={value!r}: expected a list of {what}'
            + (', at least one' if least else '')
        )
    return value
