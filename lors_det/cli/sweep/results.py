# SPDX-License-Identifier: Apache-2.0
"""From what runs left to rows, a table and a plot."""

from __future__ import annotations

import csv
import io
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

AP_COLUMNS = (
    'bbox_mAP',
    'bbox_mAP_50',
    'bbox_mAP_75',
    'bbox_mAP_s',
    'bbox_mAP_m',
    'bbox_mAP_l',
)
Row = dict[str, Any]


@dataclass(frozen=True)
class TrainingLog:
    """What mmengine's logs of one work folder say.

    Args:
        validated: Whether the latest start of the run has validated.
        average_precision: The last validation of that start: a value from 0
            to 1 for every one of `AP_COLUMNS`, -1 where no object has the
            size, None where the evaluator gives no such value.
        seconds: Training time of all steps together, each counted once; None
            if no step was logged.
        gpu_mib: Most GPU memory that tensors took, in MiB; None without GPU.
    """

    validated: bool
    average_precision: dict[str, float | None]
    seconds: float | None
    gpu_mib: float | None


def read_log(work_dir: Path) -> TrainingLog:
    """Read the logs that mmengine left, one per start of the run.

    Args:
        work_dir: Work folder of the run.
    """
    validation: dict[str, Any] = {}
    times: dict[int, float] = {}
    memory = []
    # Folders are named by the time of the start. One that found nothing left
    # to do wrote no scalars.
    for folder in sorted(work_dir.glob('*/vis_data')):
        validation = {}
        for record in _records(folder / 'scalars.json'):
            if 'iter' not in record:  # only training steps have it
                validation = record
                continue
            if 'time' in record:
                times[record['iter']] = record['time']
            memory.append(record.get('memory'))
    return TrainingLog(
        validated=bool(validation),
        average_precision={
            name: _metric(validation, name) for name in AP_COLUMNS
        },
        seconds=_total_time(times),
        gpu_mib=max((m for m in memory if m is not None), default=None),
    )


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file; one that is interrupted leaves the old one.

    Args:
        path: The file.
        content: All of it.
    """
    part = path.with_name(path.name + '.part')
    part.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    os.replace(part, path)


def csv_text(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Write rows as CSV; None is an empty field.

    Args:
        rows: One per finished run.
        columns: Names of the columns, in order.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, columns, extrasaction='ignore', lineterminator='\n'
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def mean_and_std(
    values: Iterable[float | None],
) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what was measured.

    Args:
        values: One per run; None where there is none.

    Returns:
        The mean, None without a value; the deviation (n - 1), None for fewer
        than two values.
    """
    known = [value for value in values if value is not None]
    return (
        statistics.fmean(known) if known else None,
        statistics.stdev(known) if len(known) > 1 else None,
    )


def summary_text(
    rows: Sequence[Row], keys: Sequence[str], planned: int
) -> str:
    """A Markdown page with one line per cell: mean and deviation over seeds.

    Args:
        rows: One per finished run.
        keys: Keys of the grid.
        planned: Number of runs of the sweep.
    """
    names = [name.replace('bbox_m', '') for name in AP_COLUMNS]
    header = [
        'config', *keys, 'runs', *names,
        'decoder (M)', 'model (M)', 'training (s)', 'memory (MiB)',
    ]  # fmt: skip
    lines = [
        '# Results of the sweep',
        '',
        f'{len(rows)} of {planned} runs are finished. AP in points (0 to '
        '100), last validation;',
        'mean ± standard deviation (n - 1) over seeds. Parameters in '
        'millions; memory is the',
        'largest of the runs. results.csv has every run.',
        '',
        '| ' + ' | '.join(header) + ' |',
        '| ' + ' | '.join(['---'] * (1 + len(keys))) + ' | '
        + ' | '.join(['---:'] * (len(header) - 1 - len(keys))) + ' |',
    ]  # fmt: skip
    for runs in _cells(rows, keys):
        first = runs[0]
        decoder = first['decoder_parameters']
        memory = [r['memory_mib'] for r in runs if r['memory_mib'] is not None]
        cells = [
            str(first['config']),
            *(str(first[key]) for key in keys),
            str(len(runs)),
            *(
                _plus_minus(_points(r[name] for r in runs), 2)
                for name in AP_COLUMNS
            ),
            '' if decoder is None else f'{decoder / 1e6:.2f}',
            f'{first["parameters"] / 1e6:.2f}',
            _plus_minus([r['train_seconds'] for r in runs], 0),
            f'{max(memory):.0f}' if memory else '',
        ]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def plot_summary(
    rows: Sequence[Row], keys: Sequence[str], stem: Path
) -> list[Path]:
    """Plot AP against the decoder's parameters, one point per cell.

    Args:
        rows: One per finished run.
        keys: Keys of the grid.
        stem: Path of the pictures without ending.

    Returns:
        The files: PNG and SVG.
    """
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for index, runs in enumerate(_cells(rows, keys)):
        mean, std = mean_and_std(_points(r['bbox_mAP'] for r in runs))
        decoder = runs[0]['decoder_parameters']
        if mean is None or decoder is None:
            continue
        values = [f'{key.split(".")[-1]}={runs[0][key]}' for key in keys]
        axes.errorbar(
            decoder / 1e6,
            mean,
            yerr=std,
            capsize=3,
            linestyle='none',
            marker='osD^v*'[index // 10 % 6],  # colours repeat after ten
            label=', '.join([Path(runs[0]['config']).stem, *values]),
        )
    axes.set_xlabel('decoder parameters (millions)')
    axes.set_ylabel('AP in points, mean ± standard deviation over seeds')
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc='outside lower center', fontsize='small')
    else:
        axes.set_title('no run with an AP and a decoder')
    paths = []
    for ending in ('png', 'svg'):
        buffer = io.BytesIO()
        # The same rows give the same file.
        with matplotlib.rc_context({'svg.hashsalt': 'sweep'}):
            figure.savefig(
                buffer,
                format=ending,
                dpi=150,
                metadata={'Date': None} if ending == 'svg' else None,
            )
        paths.append(stem.with_suffix(f'.{ending}'))
        write_atomically(paths[-1], buffer.getvalue())
    return paths


def _records(file: Path) -> list[dict[str, Any]]:
    """The lines of a log, if there is one; the last may be cut off."""
    records: list[dict[str, Any]] = []
    if not file.is_file():
        return records
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _metric(record: dict[str, Any], name: str) -> float | None:
    """A value of a validation, whatever prefix its evaluator has."""
    for key, value in record.items():
        if key.split('/')[-1] == name:
            return float(value)
    return None


def _total_time(times: dict[int, float]) -> float | None:
    """Sum of all steps: a log line gives the mean since the one before."""
    total, last = 0.0, 0
    for step in sorted(times):
        total += times[step] * (step - last)
        last = step
    return total if times else None


def _cells(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """Rows that differ in the seed only, together."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cell = repr([row['config'], *(row[key] for key in keys)])
        cells.setdefault(cell, []).append(row)
    return list(cells.values())


def _points(values: Iterable[float | None]) -> list[float | None]:
    """AP from 0..1 to 0..100; COCO's -1 (no such object) is no value."""
    return [None if v is None or v < 0 else 100 * v for v in values]


def _plus_minus(values: Iterable[float | None], digits: int) -> str:
    """Mean ± deviation, as far as there are any."""
    mean, std = mean_and_std(values)
    if mean is None:
        return ''
    text = f'{mean:.{digits}f}'
    return text if std is None else f'{text} ± {std:.{digits}f}'
