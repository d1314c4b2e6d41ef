# SPDX-License-Identifier: Apache-2.0
"""From the file that describes a sweep to a list of checked runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from lors_det.adamixer.settings import STACKS
from lors_det.analysis.costs import build_on_meta
from lors_det.cli.launch import load_config
from lors_det.cli.sweep.description import (
    SEED,
    Sweep,
    check_unique,
    option_text,
)
from lors_det.errors import UsageError
from lors_det.lors import count_parameters
from lors_det.lors.config import StackConfig

MAX_NAME = 150  # characters; file systems allow 255


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Args:
        name: Name of its folder; no other run of the sweep has it.
        config: Config file.
        values: Values of the grid, by key.
        seed: Random seed.
        options: All that is changed of the config, by key.
        settings: The whole config that results, by dotted key; empty until
            `build_runs`.
        parameters: Of the detector.
        decoder_parameters: Of its decoder; None if it has none.
    """

    name: str
    config: str
    values: dict[str, Any]
    seed: int
    options: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    decoder_parameters: int | None = None


def list_runs(sweep: Sweep) -> list[Run]:
    """Every config, with every cell of the grid, with every seed.

    The same sweep gives the same names; further seeds, configs of another
    name or further values of a key leave the names of the others as they are.

    Args:
        sweep: The description.

    Raises:
        UsageError: If two runs would have the same name.
    """
    configs = dict(
        zip(
            sweep.configs,
            _short([Path(c).with_suffix('').parts for c in sweep.configs]),
            strict=True,
        )
    )
    keys = _short([tuple(key.split('.')) for key in sweep.grid])
    runs = []
    for config, label in configs.items():
        for cell in itertools.product(*sweep.grid.values()):
            parts = [
                f'{key}-{_slug(value)}'
                for key, value in zip(keys, cell, strict=True)
            ]
            stem = '_'.join([label, *parts])
            if len(stem) > MAX_NAME:
                stem = f'{stem[:MAX_NAME]}-{_digest(stem)}'
            values = dict(zip(sweep.grid, cell, strict=True))
            runs += [
                Run(
                    name=f'{stem}_seed-{seed}',
                    config=config,
                    values=values,
                    seed=seed,
                    options={**sweep.options, **values, SEED: seed},
                )
                for seed in sweep.seeds
            ]
    check_unique('configs', (run.name for run in runs))
    return runs


def build_runs(runs: list[Run], sweep: Sweep) -> list[Run]:
    """Build every model once without memory, so that errors show up now.

    Args:
        runs: Runs of `list_runs`.
        sweep: What they come from.

    Returns:
        The same runs with their settings and numbers of parameters.

    Raises:
        UsageError: If a config or one of its bases is missing, has no model
            or no validation, lacks a key that the sweep changes, or does not
            build; the text names the key.
    """
    built: dict[str, Run] = {}
    checked = []
    for run in runs:
        cell = repr((run.config, run.values))
        if cell not in built:
            built[cell] = _build(run, sweep)
        settings = {**built[cell].settings, SEED: run.seed}
        checked.append(
            replace(
                run,
                settings=settings,
                parameters=built[cell].parameters,
                decoder_parameters=built[cell].decoder_parameters,
            )
        )
    return checked


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two sets of settings.

    Args:
        old: Settings by dotted key.
        new: The same of today.

    Returns:
        The first differences in words; empty if there are none.
    """
    missing = 'not set'
    changes = [
        f'{key} was {old.get(key, missing)!r}, is {new.get(key, missing)!r}'
        for key in sorted({*old, *new})
        if old.get(key, missing) != new.get(key, missing)
    ]
    return '; '.join(changes[:3]) + ('; ...' if changes[3:] else '')


def _build(run: Run, sweep: Sweep) -> Run:
    """Load the config of one run, change it, and build its model."""
    cfg = load_config(run.config)
    tree = _with_stacks(cfg.to_dict())
    for kind, keys in (('grid', sweep.grid), ('options', sweep.options)):
        for key in keys:
            _check_key(tree, kind, key, run.config)
    changed = ', '.join(
        f'{key}={option_text(value)}'
        for key, value in run.options.items()
        if key != SEED
    )
    what = f'{run.config} with {changed}' if changed else run.config
    try:
        cfg.merge_from_dict(dict(run.options))
        model = build_on_meta(cfg.model)
    except Exception as error:  # any that a class raises, or asserts
        text = ' '.join(str(error).split())
        raise UsageError(
            f'{what} does not build: {type(error).__name__}: {text}'
        ) from error
    if not cfg.get('val_cfg'):
        raise UsageError(
            f'{what}: val_cfg is not set, and without validation there is '
            'nothing to compare'
        )
    children = dict(model.named_children())
    return replace(
        run,
        settings=_settings(cfg, sweep),
        parameters=count_parameters(model).total,
        decoder_parameters=(
            count_parameters(children['decoder']).total
            if 'decoder' in children
            else None
        ),
    )


def _settings(cfg: Config, sweep: Sweep) -> dict[str, Any]:
    """All that decides what a run computes, as JSON would give it back."""
    settings = {
        **_flat(cfg.to_dict()),
        'sweep.gpus': sweep.gpus,
        'sweep.arguments': sweep.arguments,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Nested mappings as one, by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves.update(_flat(value, f'{prefix}{key}.'))
        else:
            leaves[f'{prefix}{key}'] = value
    return leaves


def _with_stacks(tree: dict[str, Any]) -> dict[str, Any]:
    """Add the settings of stacks, which a config sets only where needed."""
    decoder = (tree.get('model') or {}).get('decoder') or {}
    if decoder.get('type') == 'AdaMixerDecoder':
        known = dict.fromkeys(entry.name for entry in fields(StackConfig))
        decoder['stacks'] = {step: known for step in STACKS}
    return tree


def _check_key(
    tree: Mapping[str, Any], kind: str, key: str, config: str
) -> None:
    """Refuse a key that the config does not set: most are typos."""
    node: Any = tree
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)):
            node = {str(index): entry for index, entry in enumerate(node)}
        if not isinstance(node, Mapping) or part not in node:
            parent = '.'.join(parts[:depth]) or 'the config'
            there = (
                f'{parent} has {[str(name) for name in node]}'
                if isinstance(node, Mapping)
                else f'{parent} is {node!r}'
            )
            raise UsageError(
                f'{kind}.{key}: {config} sets no {key}; {there}; a sweep '
                'changes what the config sets, and any field of '
                'model.decoder.stacks'
            )
        node = node[part]


def _short(paths: list[tuple[str, ...]]) -> list[str]:
    """The shortest endings by which paths can be told apart."""
    for length in range(1, max(map(len, paths), default=0) + 1):
        names = ['-'.join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return [re.sub(r'[^\w.-]+', '-', name) for name in names]
    return ['-'.join(path) for path in paths]


def _slug(value: Any) -> str:
    """A value as part of a file name; different values differ."""
    text = ','.join(map(str, value)) if isinstance(value, list) else str(value)
    plain = r'[\w.+-]+(,[\w.+-]+)+' if isinstance(value, list) else r'[\w.+-]+'
    if re.fullmatch(plain, text, re.ASCII):
        return text
    safe = re.sub(r'[^\w.+-]+', '-', text, flags=re.ASCII).strip('-')
    return f'{safe[-30:]}-{_digest(repr(value))}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
