# SPDX-License-Identifier: Apache-2.0
"""Behind tools/sweep.py: train configs x values x seeds, one row per run."""

from __future__ import annotations

import argparse
import difflib
import fcntl
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure
from mmengine.runner import find_latest_checkpoint
from mmengine.utils import get_git_hash
from scipy import stats

from lors_det.adamixer.settings import STACKS
from lors_det.analysis.costs import build_on_meta
from lors_det.analysis.tables import markdown_table
from lors_det.cli.checks import check_dataset
from lors_det.cli.launch import load_config
from lors_det.errors import UsageError
from lors_det.files import atomic_write, check_file
from lors_det.lors import StackConfig, count_parameters

SEED = 'randomness.seed'
KINDS = {
    'configs': (str, 'files'),
    'seeds': (int, 'integers'),
    'command': (str, 'words'),
}
NO_METRICS = ('step', 'epoch', 'time', 'data_time')
# Columns before `seed` say what was trained; those behind `best` are metrics.
NEEDED = ('run', 'seed', 'settings', 'parameters', 'seconds_per_step', 'best')
LEGEND = (
    'Mean ± standard deviation (n - 1) over the runs, last evaluation; best: '
    'the best evaluation of the first metric. Change: of the first metric '
    'against the first row, mean over pairs of equal seed and its 95 % '
    'interval (Student).'
)


class _Loader(yaml.SafeLoader):
    """Reads 4e-4 as a number, as YAML 1.2 does, not as text."""


_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?\d+e[-+]?\d+$'), None
)


@dataclass(frozen=True)
class Sweep:
    """Content of a sweep file.

    Args:
        configs: Config files, as tools/train.py takes them.
        seeds: Random seeds; every cell of the grid is trained with each.
        grid: Values to try, by the dotted key of the setting.
        options: Settings that are the same in all runs, by dotted key.
        command: What trains: the command before the name of the config.
    """

    configs: list[str]
    seeds: list[int]
    grid: dict[str, list[Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(
        default_factory=lambda: ['python', 'tools/train.py']
    )


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Args:
        name: Name of its folder and its row.
        content: Of the config file that it is trained with.
        row: What its row begins with.
    """

    name: str
    content: str
    row: dict[str, Any]


def run_sweep(args: argparse.Namespace) -> None:
    """Train what has no row yet, then write the table and the plot.

    Args:
        args: Parsed arguments of tools/sweep.py.

    Raises:
        UsageError: If the description is wrong, a run was trained with other
            settings, another sweep uses the folder, or a run fails.
    """
    if args.sweep.endswith('.csv'):
        write_summary(Path(args.sweep))
        return
    sweep = read_sweep(args.sweep)
    runs = _list_runs(sweep)
    work_dir = args.work_dir or Path('work_dirs', Path(args.sweep).stem)
    folder = Path(work_dir).resolve()
    results = Path(args.results or folder / 'results.csv')
    if args.dry_run:
        waiting = _unfinished(runs, results, folder)
        for run in runs:
            command = shlex.join(_command(run, sweep, folder))
            print(f'{run.name}:', command if run in waiting else 'finished')
        return
    if args.parallel < 1:
        raise UsageError(f'--parallel {args.parallel}: expected 1 or more')
    failed: list[str] = []
    repeated: list[Run] = []
    with lock_folder(folder) as lock:
        waiting = _unfinished(runs, results, folder)
        print(f'{len(runs) - len(waiting)} of {len(runs)} runs are finished')
        processes = _train(waiting, sweep, folder, lock, args.parallel)
        with closing(processes):
            for run, status in processes:
                log = {} if status else _read_log(folder / run.name)
                if log:
                    _add_row(results, run, log, runs)
                    print(f'{run.name}: finished, best {log["best"]}')
                elif (
                    status == 0
                    and run not in repeated
                    and (
                        last := find_latest_checkpoint(str(folder / run.name))
                    )
                ):
                    # It was killed between its last checkpoint and the
                    # evaluation, and mmengine evaluates only after training:
                    # train the last part once more.
                    Path(last).unlink(missing_ok=True)
                    repeated.append(run)
                    waiting.insert(0, run)
                else:
                    message = _failure(run, status, folder)
                    if not args.keep_going:
                        raise UsageError(message)
                    print(message, flush=True)
                    failed.append(run.name)
    if results.is_file():
        print('table and plot:', *write_summary(results))
    if failed:
        raise UsageError(
            f'{len(failed)} of {len(runs)} runs failed: {", ".join(failed)}'
        )


def read_sweep(path: str) -> Sweep:
    """Read the description of a sweep.

    Args:
        path: A YAML file with the fields of `Sweep`.

    Raises:
        UsageError: If the file is missing or wrong; the text names the key.
    """
    check_file(path, 'SWEEP')
    try:
        found = yaml.load(Path(path).read_text('utf-8'), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = ' '.join(str(error).split())
        raise UsageError(f'SWEEP: {path} is no YAML: {text}') from None
    known = [entry.name for entry in fields(Sweep)]
    if not isinstance(found, dict):
        raise UsageError(f'SWEEP: {path}: expected keys out of {known}')
    for key in found:
        if key not in known:
            raise UsageError(f'SWEEP: no key {key!r}; {_nearest(key, known)}')
    sweep = Sweep(**{'configs': None, 'seeds': None, **found})
    for key in ('grid', 'options'):
        if not isinstance(getattr(sweep, key), dict):
            raise UsageError(f'SWEEP: {key}: expected settings by their key')
    lists = [(f'grid.{key}', values) for key, values in sweep.grid.items()]
    lists += [(key, getattr(sweep, key)) for key in KINDS]
    for key, value in lists:
        kind, what = KINDS.get(key, (object, 'values'))
        is_list = isinstance(value, list) and len(value) > 0
        if not is_list or not all(isinstance(entry, kind) for entry in value):
            raise UsageError(
                f'SWEEP: {key}={value!r}: expected a list of {what}'
            )
    for key in sweep.grid:
        if key in sweep.options:
            raise UsageError(f'SWEEP: {key}: is in grid and in options')
    if SEED in (*sweep.grid, *sweep.options):
        raise UsageError(f'SWEEP: {SEED}: name the seeds under seeds')
    return sweep


def _list_runs(sweep: Sweep) -> list[Run]:
    """List every config with every cell of the grid and every seed."""
    runs: dict[str, Run] = {}
    for config in sweep.configs:
        for cell in itertools.product(*sweep.grid.values()):
            values = dict(zip(sweep.grid, cell, strict=True))
            tree, parameters = _build(config, sweep.options, values)
            parts = [Path(config).stem]
            for key, value in values.items():
                text = re.sub(r'[^\w.+-]+', '-', str(value)).strip('-')
                parts.append(f'{key.split(".")[-1]}-{text}')
            loop = tree['train_cfg'] or {}
            length = loop.get('max_epochs') or loop.get('max_iters')
            unit = 'epochs' if 'max_epochs' in loop else 'iterations'
            for seed in sweep.seeds:
                name = '_'.join([*parts, f'seed-{seed}'])
                if name in runs:
                    raise UsageError(
                        f'SWEEP: two runs are called {name}: is a config, '
                        'value or seed there twice, or like another?'
                    )
                tree.setdefault('randomness', {})['seed'] = seed
                lines = [f'# tools/sweep.py, {shlex.join(sweep.command)}']
                lines += [f'{key} = {value!r}' for key, value in tree.items()]
                content = '\n'.join(lines) + '\n'
                row = {
                    'run': name,
                    'config': config,
                    **sweep.options,
                    **values,
                    'seed': seed,
                    'settings': sha256(content.encode()).hexdigest()[:12],
                    'commit': get_git_hash(digits=12),
                    'schedule': f'{length} {unit}',
                    'parameters': parameters,
                }
                runs[name] = Run(name, content, row)
    return list(runs.values())


def _build(
    config: str, options: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], int]:
    """Return a changed config, and the number of its model's parameters."""
    cfg = load_config(config)
    tree = cfg.to_dict()
    decoder = (tree.get('model') or {}).get('decoder') or {}
    if decoder.get('type') == 'AdaMixerDecoder':
        known_fields = dict.fromkeys(
            entry.name for entry in fields(StackConfig)
        )
        decoder['stacks'] = dict.fromkeys(STACKS, known_fields)
    known = list(_keys(tree))
    for key in (*options, *values):
        if key not in known:
            raise UsageError(
                f'SWEEP: {config} sets no {key}; {_nearest(key, known)}'
            )
    what = ', '.join([config, *(f'{k}={v}' for k, v in values.items())])
    try:
        cfg.merge_from_dict({**options, **values})
        model = build_on_meta(cfg.model)
    except Exception as error:  # any that a class raises
        text = f'{type(error).__name__}: {" ".join(str(error).split())}'
        raise UsageError(f'SWEEP: {what}: {text}') from error
    if cfg.get('val_cfg') is None:
        raise UsageError(f'SWEEP: {what}: val_cfg=None: nothing to compare')
    for loop in ('train', 'val'):
        check_dataset(cfg, loop)
    return cfg.to_dict(), count_parameters(model).total


def _keys(value: Any, prefix: str = '') -> Iterator[str]:
    """Yield the dotted keys of nested mappings and lists."""
    if isinstance(value, (list, tuple)):
        value = {str(index): entry for index, entry in enumerate(value)}
    for key, entry in value.items() if isinstance(value, dict) else ():
        yield f'{prefix}{key}'
        yield from _keys(entry, f'{prefix}{key}.')


def _nearest(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), known, 1, 0)
    return f'the nearest is {near[0]}' if near else 'there is none'


def _unfinished(runs: list[Run], results: Path, folder: Path) -> list[Run]:
    """Return runs without a row; refuse what has other settings."""
    rows = _read_rows(results)
    digests = dict(zip(rows['run'], rows['settings'], strict=True))
    for run in runs:
        work_dir, file = folder / run.name, folder / f'{run.name}.py'
        if run.name in digests:
            place, is_same = results, digests[run.name] == run.row['settings']
        else:
            old = file.read_text('utf-8') if file.is_file() else None
            place = work_dir
            is_same = old == run.content or not any(work_dir.glob('*.pth'))
        if not is_same:
            raise UsageError(
                f'{run.name} was trained with other settings ({place}): '
                'remove it there to train it anew, or name another --work-dir'
            )
    return [run for run in runs if run.name not in digests]


def _command(run: Run, sweep: Sweep, folder: Path) -> list[str]:
    command = [sys.executable if c == 'python' else c for c in sweep.command]
    work_dir = str(folder / run.name)
    return [*command, f'{work_dir}.py', '--work-dir', work_dir, '--resume']


def _train(
    waiting: list[Run], sweep: Sweep, folder: Path, lock: int, parallel: int
) -> Generator[tuple[Run, int]]:
    """Train runs, some at a time; yield each with its exit status."""
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    threads = {'OMP_NUM_THREADS': '1'} if parallel > 1 else {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                run = waiting.pop(0)
                print(f'{run.name}: training', flush=True)
                (folder / run.name).mkdir(exist_ok=True)
                atomic_write(folder / f'{run.name}.py', run.content)
                with (folder / run.name / 'output.log').open('wb') as output:
                    process = subprocess.Popen(
                        _command(run, sweep, folder),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env={**threads, **os.environ},
                        start_new_session=True,  # to stop all its processes
                        pass_fds=(lock,),
                    )
                running.append((run, process))
            time.sleep(0.2)
            for run, process in list(running):
                if process.poll() is not None:
                    running.remove((run, process))
                    yield run, process.returncode
    finally:
        for _, process in running:
            os.killpg(process.pid, signal.SIGTERM)
        for _, process in running:
            process.wait()


def _failure(run: Run, status: int, folder: Path) -> str:
    """Print the last lines of a run; return one line for the user."""
    output = folder / run.name / 'output.log'
    lines = output.read_text('utf-8', errors='replace').splitlines()
    print(*lines[-10:], sep='\n', flush=True)
    what = (
        f'failed with exit status {status}' if status else 'did not evaluate'
    )
    return f'{run.name} {what}; all of its output: {output}'


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Lock a folder until this process and all that inherit the file end."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f'--work-dir {folder}: another sweep, or a run that it left '
                'behind, is at work there'
            ) from None
        yield file.fileno()


def _read_log(work_dir: Path) -> dict[str, Any]:
    """Read the logs of all starts; empty if the last did not evaluate."""
    times: list[float] = []
    evaluations: list[dict[str, Any]] = []
    is_evaluated = False
    for start in sorted(work_dir.glob('*/vis_data')):
        is_evaluated = False
        file = start / 'scalars.json'
        for line in file.read_text().splitlines() if file.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut off when the run was killed
            is_evaluated = 'iter' not in record
            if not is_evaluated:
                times.append(record['time'])
                continue
            for key in NO_METRICS:
                record.pop(key, None)
            evaluations.append({k.split('/')[-1]: record[k] for k in record})
    if not is_evaluated:
        return {}
    first = next(iter(evaluations[-1]))
    return {
        'seconds_per_step': pd.Series(times, dtype=float).median(),
        'best': max(metrics[first] for metrics in evaluations),
        **evaluations[-1],
    }


def _read_rows(results: Path) -> pd.DataFrame:
    """Read the rows of finished runs, as text."""
    if not results.is_file():
        return pd.DataFrame(columns=list(NEEDED))
    try:
        rows = pd.read_csv(results, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise UsageError(f'{results} is no CSV: {error}') from None
    for column in NEEDED:
        if column not in rows:
            raise UsageError(f'{results} has no column {column!r}')
    return rows


def _add_row(
    results: Path, run: Run, log: Mapping[str, Any], runs: list[Run]
) -> None:
    """Add the row of a run that has finished; sort as the sweep does."""
    old = _read_rows(results)
    rows = pd.DataFrame([*old.to_dict('records'), {**run.row, **log}])
    # The settings of all rows go before the seed.
    settings = [*_before_seed(old), *_before_seed(run.row)]
    columns = dict.fromkeys([*settings, *rows.columns])
    order = {run.name: index for index, run in enumerate(runs)}
    rows = rows[list(columns)].sort_values(
        'run', key=lambda names: names.map(order), kind='stable'
    )
    atomic_write(results, rows.to_csv(index=False))


def _before_seed(columns: Iterable[str]) -> list[str]:
    return list(itertools.takewhile(lambda name: name != 'seed', columns))


def write_summary(results: Path) -> list[Path]:
    """Write a table and a plot of results next to them.

    Args:
        results: The CSV file of a sweep; nothing else is needed.

    Returns:
        The files, which have its name but end in ``.md`` and ``.svg``.

    Raises:
        UsageError: If the file is missing or not a sweep's.
    """
    check_file(str(results), 'SWEEP')
    rows = _read_rows(results)
    names = list(rows.columns)
    numbers = rows.loc[:, 'parameters':].apply(pd.to_numeric, errors='coerce')
    rows = rows.loc[:, :'seed'].join(numbers)
    metrics = names[names.index('best') + 1 :]
    settings = _before_seed(names)[1:]  # without the name of the run
    keys = [key for key in settings if rows[key].nunique() > 1] or ['config']
    cells = rows.groupby(keys, sort=False)
    mean, std = cells[list(numbers)].mean(), cells[list(numbers)].std()
    # Runs with the same seed, against those of the first cell.
    by_seed = rows.groupby([*keys, 'seed'], sort=False)[metrics[0]].mean()
    by_seed = by_seed.unstack('seed').reindex(mean.index)
    change = by_seed - by_seed.iloc[0]
    half = change.sem(axis=1) * stats.t.ppf(0.975, change.count(axis=1) - 1)

    table = pd.DataFrame({'runs': cells.size()})
    for name in [*metrics, 'best']:
        table[name] = list(map(_plus_minus, mean[name], std[name]))
    table['change (95 %)'] = list(map(_plus_minus, change.mean(axis=1), half))
    table['parameters'] = [f'{count:,.0f}' for count in mean['parameters']]
    table['s per step'] = [f'{t:.3g}' for t in mean['seconds_per_step']]
    table = table.reset_index().astype(str)
    text = markdown_table([list(table), *table.values.tolist()])
    files = [results.with_suffix(ending) for ending in ('.md', '.svg')]
    atomic_write(files[0], f'{text}\n\n{LEGEND}\n')

    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for (label, cell), spread in zip(cells, std[metrics[0]], strict=True):
        axes.errorbar(
            cell['parameters'].mean() / 1e6,
            cell[metrics[0]].mean(),
            yerr=spread,
            fmt='o',
            capsize=3,
            label=', '.join(label),
        )
    axes.set_xlabel('parameters [millions]')
    axes.set_ylabel(f'{metrics[0]}, mean ± standard deviation over seeds')
    figure.legend(loc='outside lower center', fontsize='small')
    picture = io.BytesIO()
    # Equal rows give equal bytes.
    with matplotlib.rc_context({'svg.hashsalt': 'sweep'}):
        figure.savefig(picture, format='svg', metadata={'Date': None})
    atomic_write(files[1], picture.getvalue())
    return files


def _plus_minus(mean: float, spread: float) -> str:
    """Write ``0.412 ± 0.0021``; without what is not known."""
    texts = [f'{mean:.4g}', f'{spread:.2g}']
    return ' ± '.join(text for text in texts if text != 'nan')
