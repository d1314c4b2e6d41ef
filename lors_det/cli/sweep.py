# SPDX-License-Identifier: Apache-2.0
"""Behind tools/sweep.py: train configs x values x seeds, one row per run."""

from __future__ import annotations

import argparse
import fcntl
import io
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import matplotlib
import pandas as pd
import yaml
from matplotlib.figure import Figure
from mmengine.utils import get_git_hash
from scipy import stats

from lors_det.adamixer import AdaMixer
from lors_det.analysis.costs import build_on_meta, count_macs
from lors_det.analysis.run_log import read_starts
from lors_det.analysis.tables import markdown_table
from lors_det.cli.boundary import OneLineErrors, suggest
from lors_det.cli.checks import check_dataset, check_options
from lors_det.errors import UsageError
from lors_det.files import (
    MIM,
    atomic_write,
    check_file,
    load_config,
    write_between_marks,
)
from lors_det.lors import count_parameters

SEED = 'randomness.seed'
TRAIN = 'tools/train.py'
# Columns with a '/' are metrics; the others, but these, say what was trained.
COLUMNS = ('run', 'config', 'seed', 'settings', 'commit', 'schedule')
COSTS = {
    'parameters': 'parameters',
    'decoder_parameters': 'of the decoder',
    'decoder_gmacs': 'GMACs of the decoder',
}
NUMBERS = (*COSTS, 'seconds_per_step', 'best')
# COCO's metrics in tables: their names, and in per cent; None: not shown.
COCO: dict[str, str | None] = {
    'coco/bbox_mAP': 'AP',
    'coco/bbox_mAP_50': 'AP50',
    'coco/bbox_mAP_75': 'AP75',
    **{f'coco/bbox_mAP_{size}': None for size in 'sml'},
}
LEGEND = (
    'Mean ± standard deviation (n - 1) over the runs, last evaluation. '
    'Change: of the first metric against the first model, mean over pairs of '
    'equal seed (and equal other settings) and its 95 % interval (Student). '
    'GMACs: 10^9 multiply-adds for one image, without sampling.'
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
        configs: Config files, as tools/train.py takes them, by the names
            that the models get in tables; or a list, for the files' names.
        seeds: Random seeds; every cell of the grid is trained with each.
        grid: Values to try, by the dotted key of the setting.
        options: Settings that are the same in all runs, by dotted key.
        command: What trains: the command before the name of the config.
    """

    configs: dict[str, str]
    seeds: list[int]
    grid: dict[str, list[Any]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=lambda: ['python', TRAIN])


@dataclass(frozen=True)
class _Run:
    """One training of a sweep."""

    name: str  # of its folder and its row
    content: str  # of its config file
    row: dict[str, Any]  # what its row begins with


def run_sweep(args: argparse.Namespace) -> None:
    """Train what has no row yet, then write the table and the plot.

    Args:
        args: Parsed arguments of tools/sweep.py.

    Raises:
        UsageError: If the description is wrong, a run was trained with other
            settings, another sweep uses the folder, or a run fails.
    """
    if args.sweep.endswith('.csv'):
        files = write_summary(Path(args.sweep))
        if args.document:
            name = Path(args.sweep).stem
            marks = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
            text = files[0].read_text('utf-8')
            write_between_marks(args.document, *marks, text)
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
    failed = []
    running: list[tuple[_Run, subprocess.Popen[bytes]]] = []
    with _lock(folder) as lock:
        waiting = _unfinished(runs, results, folder)
        print(f'{len(runs) - len(waiting)} of {len(runs)} runs are finished')
        threads = {'OMP_NUM_THREADS': '1'} if args.parallel > 1 else {}
        env = {**threads, **os.environ}
        try:
            while waiting or running:
                while waiting and len(running) < max(1, args.parallel):
                    run = waiting.pop(0)
                    print(f'{run.name}: training', flush=True)
                    process = _start(run, sweep, folder, lock, env)
                    running.append((run, process))
                time.sleep(0.2)
                for run, process in running[:]:
                    if process.poll() is None:
                        continue
                    running.remove((run, process))
                    log = _read_log(folder / run.name)
                    if log and not process.returncode:
                        _add_row(results, run, log, runs)
                        print(f'{run.name}: finished, best {log["best"]}')
                        continue
                    message = _failure(folder / run.name, process.returncode)
                    if not args.keep_going:
                        raise UsageError(message)
                    print(message, flush=True)
                    failed.append(run.name)
        finally:
            for _, process in running:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
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
            raise UsageError(f'SWEEP: no key {key!r}{suggest(key, known)}')
    sweep = Sweep(**{'configs': None, 'seeds': None, **found})
    for key in ('grid', 'options'):
        value = getattr(sweep, key)
        if not isinstance(value, dict) or SEED in value:
            raise UsageError(
                f'SWEEP: {key}={value!r}: expected settings by their key, and '
                f'the values of {SEED} under seeds'
            )
    configs: Any = sweep.configs
    files = list(configs.values()) if isinstance(configs, dict) else configs
    for key, value, kind, what in (
        *((f'grid.{key}', each, object, 'values')
          for key, each in sweep.grid.items()),
        ('configs', files, str, 'str'),
        ('seeds', sweep.seeds, int, 'int'),
        ('command', sweep.command, str, 'str'),
    ):  # fmt: skip
        is_list = isinstance(value, list) and value
        if not is_list or not all(isinstance(each, kind) for each in value):
            raise UsageError(
                f'SWEEP: {key}={value!r}: expected a list of {what}'
            )
    if configs is files:
        configs = {Path(file).stem: file for file in files}
        if len(configs) < len(files):
            raise UsageError(
                f'SWEEP: configs={files}: two have one name; expected '
                'NAME: FILE for each'
            )
    return replace(sweep, configs=configs)


def _list_runs(sweep: Sweep) -> list[_Run]:
    """List every config with every cell of the grid and every seed."""
    runs: dict[str, _Run] = {}
    commit = get_git_hash(digits=12)
    for model, config in sweep.configs.items():
        for cell in itertools.product(*sweep.grid.values()):
            values = dict(zip(sweep.grid, cell, strict=True))
            options = {**sweep.options, **values}
            tree, costs = _build(config, options)
            parts = [_as_name(model)]
            for key, value in values.items():
                parts.append(f'{key.split(".")[-1]}-{_as_name(value)}')
            loop = tree['train_cfg'] or {}
            unit = 'epochs' if 'max_epochs' in loop else 'iters'
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
                    'model': model,
                    'config': config,
                    **options,
                    'seed': seed,
                    'settings': sha256(content.encode()).hexdigest()[:12],
                    'commit': commit,
                    'schedule': f'{loop.get(f"max_{unit}")} {unit}',
                    **costs,
                }
                runs[name] = _Run(name, content, row)
    # One seed of everything first: what is finished can be compared.
    return sorted(
        runs.values(), key=lambda run: sweep.seeds.index(run.row['seed'])
    )


def _as_name(value: object) -> str:
    """Write a value as a part of a file name."""
    return re.sub(r'[^\w.+-]+', '-', str(value)).strip('-')


def _build(
    config: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return a changed config, and what its model costs."""
    cfg = load_config(config)
    check_options(cfg, options, 'SWEEP:')
    with OneLineErrors() as errors:
        errors.cfg = cfg
        cfg.merge_from_dict(options)
        model = build_on_meta(cfg.model)
    costs: dict[str, float] = {'parameters': count_parameters(model).total}
    if isinstance(model, AdaMixer):
        costs['decoder_parameters'] = count_parameters(model.decoder).total
        costs['decoder_gmacs'] = round(count_macs(model)['decoder'] / 1e9, 6)
    if cfg.get('val_cfg') is None:
        raise UsageError(f'SWEEP: {config}: val_cfg=None: nothing to compare')
    for loop in ('train', 'val'):
        check_dataset(cfg, loop)
    return cfg.to_dict(), costs


def _unfinished(runs: list[_Run], results: Path, folder: Path) -> list[_Run]:
    """Return runs without a row; refuse what has other settings."""
    rows = _read_rows(results)
    finished = dict(zip(rows['run'], rows['settings'], strict=True))
    for run in runs:
        file, work_dir = folder / f'{run.name}.py', folder / run.name
        if run.name in finished:
            is_same = finished[run.name] == run.row['settings']
        else:
            is_same = (
                not any(work_dir.glob('*.pth'))
                or not file.is_file()
                or file.read_text('utf-8') == run.content
            )
        if not is_same:
            raise UsageError(
                f'{run.name} was trained with other settings: remove its row '
                f'in {results} and {work_dir}, or name another --work-dir'
            )
    return [run for run in runs if run.name not in finished]


def _command(run: _Run, sweep: Sweep, folder: Path) -> list[str]:
    names = {'python': sys.executable}
    if not Path(TRAIN).is_file():  # outside of a clone
        names[TRAIN] = str(MIM / TRAIN)
    command = [names.get(part, part) for part in sweep.command]
    work_dir = str(folder / run.name)
    return [*command, f'{work_dir}.py', '--work-dir', work_dir, '--resume']


def _start(
    run: _Run, sweep: Sweep, folder: Path, lock: IO[str], env: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start to train in a process group of its own."""
    (folder / run.name).mkdir(exist_ok=True)
    atomic_write(folder / f'{run.name}.py', run.content)
    with (folder / run.name / 'output.log').open('wb') as output:
        return subprocess.Popen(
            _command(run, sweep, folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # to stop all its processes
            pass_fds=(lock.fileno(),),
        )


def _failure(work_dir: Path, status: int) -> str:
    """Print the last lines of a run; return one line for the user."""
    output = work_dir / 'output.log'
    lines = output.read_text('utf-8', errors='replace').splitlines()
    print(*lines[-10:], sep='\n', flush=True)
    if status:
        what = f'failed with exit status {status}'
    else:  # mmengine evaluates after training only, not when it resumes
        what = 'did not evaluate: delete its last checkpoint to train from '
        what += 'the one before'
    return f'{work_dir.name} {what}; all of its output: {output}'


def _lock(folder: Path) -> IO[str]:
    """Lock a folder until this process and all that inherit the file end."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / '.lock').open('w')
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f'--work-dir {folder}: another sweep, or a run that it left '
            'behind, is at work there'
        ) from None
    return file


def _read_log(work_dir: Path) -> dict[str, Any]:
    """Read the logs of all starts; empty if the last did not evaluate."""
    starts = read_starts(work_dir)
    if not starts or not starts[-1] or 'iter' in starts[-1][-1]:
        return {}
    records = list(itertools.chain(*starts))
    evaluations = [
        {key: value for key, value in each.items() if '/' in key}
        for each in records
        if 'iter' not in each
    ]
    times = [each['time'] for each in records if 'iter' in each]
    first = next(iter(evaluations[-1]))
    return {
        'seconds_per_step': pd.Series(times, dtype=float).median(),
        'best': max(metrics[first] for metrics in evaluations),
        **evaluations[-1],
    }


def _read_rows(results: Path) -> pd.DataFrame:
    """Read the rows of finished runs, as text."""
    if not results.is_file():
        return pd.DataFrame(columns=COLUMNS)
    rows = pd.read_csv(results, dtype=str, keep_default_na=False)
    for column in ('run', 'model', *COLUMNS, 'parameters'):
        if column not in rows:
            raise UsageError(f'{results} has no column {column!r}')
    return rows


def _add_row(
    results: Path, run: _Run, log: Mapping[str, Any], runs: list[_Run]
) -> None:
    """Add the row of a run that has finished; sort as the sweep does."""
    rows = _read_rows(results).to_dict('records')
    rows.append({**run.row, **log})
    place = {run.name: index for index, run in enumerate(runs)}
    rows.sort(key=lambda row: place.get(row['run'], len(place)))
    atomic_write(results, pd.DataFrame(rows).to_csv(index=False))


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
    metrics = [name for name in rows if '/' in name]
    numbers = [*(name for name in NUMBERS if name in rows), *metrics]
    rows[numbers] = rows[numbers].apply(pd.to_numeric, errors='coerce')
    in_percent = [name for name in metrics if COCO.get(name)]
    rows[in_percent] *= 100
    settings = [name for name in rows if name not in (*COLUMNS, *numbers)]
    keys = [key for key in settings if rows[key].nunique() > 1] or ['model']
    cells = rows.groupby(keys, sort=False)
    mean, std = cells[numbers].mean(), cells[numbers].std()
    # Runs with the same seed, against those of the first model.
    by_seed = rows.groupby([*keys, 'seed'], sort=False)[metrics[0]].mean()
    by_seed = by_seed.unstack('seed').reindex(mean.index)
    others = keys[1:] if keys[0] == 'model' else []
    first = by_seed.iloc[0]
    if others:
        first = by_seed.groupby(level=others).transform('first')
    change = by_seed - first
    half = change.sem(axis=1) * stats.t.ppf(0.975, change.count(axis=1) - 1)

    table = pd.DataFrame({'runs': cells.size()})
    for name in metrics:
        heading = COCO.get(name, name)
        if heading:
            form = '.1f' if name in in_percent else 'g'
            table[heading] = _plus_minus(mean[name], std[name], form)
    form = '+.1f' if metrics[0] in in_percent else 'g'
    table['change (95 %)'] = _plus_minus(change.mean(axis=1), half, form)
    costs = [key for key in COSTS if key in rows]
    for key in costs:
        form = ',.3g' if key == 'decoder_gmacs' else ',.0f'
        table[COSTS[key]] = [format(count, form) for count in mean[key]]
    table = table.reset_index().astype(str)
    table.columns = [name.split('.')[-1] for name in table]
    text = markdown_table([list(table), *table.values.tolist()])
    files = [results.with_suffix(ending) for ending in ('.md', '.svg')]
    atomic_write(files[0], f'{text}\n\n{LEGEND}\n')
    size = costs[:2][-1]  # the decoder's, if there is one
    points = pd.DataFrame(
        {'size': mean[size] / 1e6, 'metric': mean[metrics[0]],
         'std': std[metrics[0]]}
    ).reset_index()  # fmt: skip
    figure = _plot(points, others or keys[:1])
    axes = figure.axes[0]
    axes.set_xlabel(f'{size.replace("_", " ")} [millions]')
    heading = COCO.get(metrics[0], metrics[0])
    axes.set_ylabel(f'{heading}, mean ± standard deviation over seeds')
    picture = io.BytesIO()
    # Equal rows give equal bytes.
    with matplotlib.rc_context({'svg.hashsalt': 'sweep'}):
        figure.savefig(picture, format='svg', metadata={'Date': None})
    atomic_write(files[1], picture.getvalue())
    return files


def _plot(points: pd.DataFrame, labels: list[str]) -> Figure:
    """Draw a line or a point per model; write other settings beside points."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    lines: Any = [('', points)]
    if 'model' in points:
        lines = points.groupby('model', sort=False)
    for number, (name, line) in enumerate(lines):
        marker = 'osD^v<>P'[number % 8]
        axes.errorbar(
            line['size'], line['metric'], line['std'],
            fmt=f'{marker}-', capsize=3, label=name,
        )  # fmt: skip
        for _, point in line.iterrows() if labels != ['model'] else ():
            axes.annotate(
                ', '.join(str(point[label]) for label in labels),
                (point['size'], point['metric']), xytext=(6, 5),
                textcoords='offset points', fontsize='small',
            )  # fmt: skip
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    if 'model' in points:
        axes.legend(fontsize='small')
    return figure


def _plus_minus(means: Any, spreads: Any, form: str) -> list[str]:
    """Write ``0.412 ± 0.0021`` for each; without what is not known."""
    first, second = form, form.lstrip('+')
    if form == 'g':
        first, second = '.4g', '.2g'
    pairs = zip(means, spreads, strict=True)
    texts = [(format(x, first), format(y, second)) for x, y in pairs]
    return [' ± '.join(t for t in pair if 'nan' not in t) for pair in texts]
