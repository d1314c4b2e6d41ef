# SPDX-License-Identifier: Apache-2.0
"""Behind tools/sweep.py: runs one after another, each finished only once."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lors_det.cli.checks import check_dataset
from lors_det.cli.launch import load_config
from lors_det.cli.sweep.description import Sweep, option_text, read_sweep
from lors_det.cli.sweep.plan import (
    Run,
    build_runs,
    changed_settings,
    list_runs,
)
from lors_det.cli.sweep.process import (
    Ended,
    commit_of,
    execute,
    last_line,
    lock_folder,
    sigterm_interrupts,
)
from lors_det.cli.sweep.results import (
    AP_COLUMNS,
    Row,
    csv_text,
    plot_summary,
    read_log,
    summary_text,
    write_atomically,
)
from lors_det.errors import UsageError

# Runs a command, its output to the file; the lock is inherited.
Execute = Callable[[Sequence[str], Path, int], Ended]


def run_sweep(
    args: argparse.Namespace, tools: Path, execute: Execute = execute
) -> None:
    """Train what is not finished yet, then write table and plot.

    Args:
        args: Parsed arguments of tools/sweep.py.
        tools: Folder of train.py and dist_train.sh.
        execute: Runs one command.

    Raises:
        UsageError: If the description is wrong, a folder belongs to other
            settings, another sweep uses the folder, or a run fails.
        KeyboardInterrupt: On SIGTERM, too.
    """
    sweep = read_sweep(args.sweep)
    runs = build_runs(list_runs(sweep), sweep)
    folder = Path(args.work_dir).resolve()
    for run in runs:
        _check_folder(folder / run.name, run)
    if args.dry_run:
        for run in runs:
            work_dir = folder / run.name
            print(f'{run.name}: {_state(work_dir)}')
            if not _finished(work_dir):
                latest = _checkpoint(work_dir)
                command = _command(run, sweep, work_dir, tools, latest)
                print(f'    {shlex.join(command)}')
        return
    for config in sweep.configs:
        cfg = load_config(config)
        cfg.merge_from_dict(dict(sweep.options))
        for loop in ('train', 'val'):
            check_dataset(cfg, loop)
    failed = []
    with lock_folder(folder) as lock, sigterm_interrupts():
        for index, run in enumerate(runs, 1):
            state = _state(folder / run.name)
            print(f'[{index}/{len(runs)}] {run.name}: {state}', flush=True)
            if not _finished(folder / run.name):
                try:
                    _train(run, sweep, folder, tools, execute, lock)
                except UsageError as error:
                    if not args.keep_going:
                        raise
                    failed.append(run.name)
                    print(f'    {error}', flush=True)
                    continue
            _write_rows(runs, sweep, folder)
            row = _row(folder / run.name)
            print(f'    bbox_mAP: {row["bbox_mAP"]}', flush=True)
        rows = _write_rows(runs, sweep, folder)
        keys = list(sweep.grid)
        write_atomically(
            folder / 'summary.md', summary_text(rows, keys, len(runs))
        )
        plot_summary(rows, keys, folder / 'summary')
    print(f'table and plot: {folder / "summary"}.{{md,png,svg}}')
    if failed:
        raise UsageError(
            f'{len(failed)} of {len(runs)} runs failed: ' + ', '.join(failed)
        )


def _train(
    run: Run,
    sweep: Sweep,
    folder: Path,
    tools: Path,
    execute: Execute,
    lock: int,
) -> None:
    """Train one run to its end, and write its result."""
    work_dir = folder / run.name
    work_dir.mkdir(exist_ok=True)
    write_atomically(work_dir / 'run.json', json.dumps(run.settings, indent=1))
    commit = commit_of(tools.parent)
    latest = _checkpoint(work_dir)

    def attempt(resume: Path | None) -> Ended:
        command = _command(run, sweep, work_dir, tools, resume)
        output = work_dir / 'output.log'
        ended = execute(command, output, lock)
        if ended.code:
            raise UsageError(
                f'{run.name} failed (exit status {ended.code}): '
                f'{last_line(output)} (all of it: {output})'
            )
        return ended

    ended = attempt(latest)
    if latest and not read_log(work_dir).validated:
        # It was interrupted after its last checkpoint, so that nothing was
        # left to train, and mmengine validates after training only.
        ended = attempt(_checkpoint(work_dir, before=latest))
    log = read_log(work_dir)
    on_gpu = log.gpu_mib is not None
    row: Row = {
        'name': run.name,
        'config': run.config,
        **run.values,
        'seed': run.seed,
        **log.average_precision,
        'decoder_parameters': run.decoder_parameters,
        'parameters': run.parameters,
        'train_seconds': log.seconds and round(log.seconds, 3),
        'memory_mib': log.gpu_mib if on_gpu else round(ended.peak_mib, 1),
        'memory_of': 'gpu' if on_gpu else 'process',
        'commit': commit,
    }
    result = {'row': row, 'settings': run.settings}
    write_atomically(work_dir / 'result.json', json.dumps(result, indent=1))


def _command(
    run: Run,
    sweep: Sweep,
    work_dir: Path,
    tools: Path,
    resume: Path | None,
) -> list[str]:
    """The command of one run."""
    if sweep.gpus > 1:
        script = [str(tools / 'dist_train.sh'), run.config, str(sweep.gpus)]
    else:
        script = [sys.executable, str(tools / 'train.py'), run.config]
    return [
        *sweep.command,
        *script,
        *sweep.arguments,
        '--work-dir',
        str(work_dir),
        *(['--resume', str(resume)] if resume else ['--overwrite']),
        '--cfg-options',
        *(
            f'{key}={option_text(value)}'
            for key, value in run.options.items()
        ),
    ]  # fmt: skip


def _checkpoint(work_dir: Path, before: Path | None = None) -> Path | None:
    """The latest complete checkpoint, or the one before a given one."""
    note = work_dir / 'last_checkpoint'  # written after the checkpoint
    if not note.is_file():
        return None
    latest = work_dir / Path(note.read_text(encoding='utf-8').strip()).name
    if before is None:
        return latest if latest.is_file() else None
    steps = {}
    for path in work_dir.glob('*.pth'):
        match = re.fullmatch(r'(?:iter|epoch)_(\d+)', path.stem)
        if match:
            steps[path] = int(match[1])
    older = [path for path in steps if steps[path] < steps.get(before, 0)]
    return max(older, key=steps.__getitem__, default=None)


def _check_folder(work_dir: Path, run: Run) -> None:
    """Refuse a folder that another sweep, or nobody known, has trained in."""
    for name in ('result.json', 'run.json'):
        if not (work_dir / name).is_file():
            continue
        found = _json(work_dir / name)
        old = found.get('settings', {}) if name == 'result.json' else found
        changes = changed_settings(old, run.settings)
        if changes:
            raise UsageError(
                f'{work_dir / name}: trained with other settings: {changes}; '
                'name another --work-dir, or remove the folder to train anew'
            )
        return
    if any(work_dir.glob('*.pth')):
        raise UsageError(
            f'{work_dir} holds checkpoints, but no run.json of a sweep; name '
            'another --work-dir, or remove the folder'
        )


def _finished(work_dir: Path) -> bool:
    return (work_dir / 'result.json').is_file()


def _state(work_dir: Path) -> str:
    """What there is of a run, in words."""
    if _finished(work_dir):
        return 'finished'
    latest = _checkpoint(work_dir)
    return f'interrupted, has {latest.name}' if latest else 'not started'


def _write_rows(runs: list[Run], sweep: Sweep, folder: Path) -> list[Row]:
    """Write results.csv from what is finished."""
    columns = [
        'name', 'config', *sweep.grid, 'seed', *AP_COLUMNS,
        'decoder_parameters', 'parameters', 'train_seconds', 'memory_mib',
        'memory_of', 'commit',
    ]  # fmt: skip
    folders = [folder / run.name for run in runs]
    rows = [_row(path) for path in folders if _finished(path)]
    write_atomically(folder / 'results.csv', csv_text(rows, columns))
    return rows


def _row(work_dir: Path) -> Row:
    row: Row = _json(work_dir / 'result.json')['row']
    return row


def _json(path: Path) -> dict[str, Any]:
    """Read what a sweep wrote."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UsageError(f'{path} is no JSON: {error}') from None
    return found
