# SPDX-License-Identifier: Apache-2.0
"""Read the numbers that a run has logged, and plot them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lors_det.errors import UsageError


def read_starts(work_dir: Path) -> list[list[dict[str, Any]]]:
    """Read what every start of a run has logged, the first one first.

    Args:
        work_dir: Folder of the run; it has a folder per start.

    Returns:
        The records of each start in order. Those of a training step have a
        key ``iter``, those of an evaluation have not.
    """
    starts = []
    for folder in sorted(work_dir.glob('*/vis_data')):
        file = folder / 'scalars.json'
        lines = file.read_text().splitlines() if file.is_file() else []
        # The last line is cut off where a run was killed.
        starts.append([json.loads(x) for x in lines if x.endswith('}')])
    return starts


def plot_runs(work_dirs: Sequence[str], file: Path) -> None:
    """Plot loss, learning rate and accuracy of runs against their steps.

    Args:
        work_dirs: Folders of the runs, one line each.
        file: Where to write to; its ending is the format, such as ``.svg``.

    Raises:
        UsageError: If a folder has no log, or the format is unknown.
    """
    runs = {work_dir: _read_run(Path(work_dir)) for work_dir in work_dirs}
    metrics = dict.fromkeys(
        name
        for _, evaluations in runs.values()
        for name in evaluations
        if name.endswith(('mAP', 'mAP_50', 'accuracy/top1'))
    )
    figure = Figure(figsize=(9, 3.2), layout='constrained')
    loss, rate, accuracy = figure.subplots(1, 3)
    for index, (name, (steps, evaluations)) in enumerate(runs.items()):
        color = f'C{index}'
        label = Path(name).name
        loss.plot(steps['loss'].dropna(), color=color, label=label)
        # Of the parameters that have no rate of their own.
        rate.plot(steps.get('base_lr', steps['lr']).dropna(), color=color)
        for metric, style in zip(metrics, ('-o', '--s', ':^'), strict=False):
            short = re.sub('.*/|bbox_m|_', '', metric)  # AP50, for example
            if metric in evaluations:
                accuracy.plot(
                    evaluations[metric].dropna(),
                    style,
                    color=color,
                    markersize=4,
                    label=short if len(runs) == 1 else f'{label}, {short}',
                )
    loss.set_ylabel('training loss')
    loss.set_yscale('log')
    loss.yaxis.set_major_formatter('{x:g}')
    loss.yaxis.set_minor_formatter('{x:g}')
    rate.set_ylabel('learning rate')
    accuracy.set_ylabel('metric of the evaluations')
    for axes in (loss, rate, accuracy):
        axes.set_xlabel('step')
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        loss.legend(fontsize='small')
    if metrics:
        accuracy.legend(fontsize='small')
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(file, dpi=150)
    except ValueError as error:  # an unknown format
        raise UsageError(f'--out {file}: {error}') from None


def _read_run(work_dir: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training steps and the evaluations of a run, by step."""
    records = pd.DataFrame(itertools.chain(*read_starts(work_dir)))
    if 'iter' not in records:
        raise UsageError(
            f'WORK_DIR {work_dir}: no log of a training there, expected '
            f'{work_dir}/*/vis_data/scalars.json'
        )
    is_step = records['iter'].notna()
    # mmengine counts evaluations in epochs.
    records['step'] = records['step'].where(is_step).ffill().fillna(0)
    # A resumed run logs some steps again: the last time counts.
    steps = records[is_step].groupby('step').last()
    return steps, records[~is_step].groupby('step').last()
