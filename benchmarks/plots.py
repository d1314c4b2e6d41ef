# SPDX-License-Identifier: Apache-2.0
"""Plots of the sweeps: what time and memory grow with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.presets import AXES, SWEPT
from benchmarks.tables import Result, median_of
from lors_det.analysis.timing import Spread, ratio

COLOURS = {'reference': '#d1603d', 'dense': '#7a869a', 'lors': '#3b6fb6'}
GROWTH = ('batch', 'queries', 'stages')
CHOICES = ('rank', 'K')


def write_plots(results: Iterable[Result], folder: Path) -> list[Path]:
    """Draw the sweeps as SVG.

    Args:
        results: With ``sweep``, the name of an axis.
        folder: Where to write to; made if it is not there.

    Returns:
        The files.
    """
    by_axis: dict[str, list[Result]] = {}
    for result in results:
        if 'sweep' in result:
            by_axis.setdefault(result['sweep'], []).append(result)
    figures = {
        'performance_growth': plot_growth(by_axis),
        'performance_rank': plot_choices(by_axis),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    # The same numbers give the same bytes.
    with matplotlib.rc_context(
        {'svg.hashsalt': 'lors_det', 'svg.fonttype': 'none'}
    ):
        for name, figure in figures.items():
            if figure is not None:
                file = folder / f'{name}.svg'
                figure.savefig(
                    file, bbox_inches='tight', metadata={'Date': None}
                )
                files.append(file)
    return files


def plot_growth(by_axis: dict[str, list[Result]]) -> Figure | None:
    """Time and peak memory of a training step over batch, queries, stages.

    Args:
        by_axis: Results by the name of the axis.
    """
    axes_of = [axis for axis in GROWTH if axis in by_axis]
    if not axes_of:
        return None
    figure = Figure(figsize=(3.6 * len(axes_of), 5.6))
    grid: Any = figure.subplots(2, len(axes_of), squeeze=False)
    for column, axis in enumerate(axes_of):
        points = by_axis[axis]
        x = [point['case'][AXES[axis][0]] for point in points]
        for name in SWEPT:
            found = [point['variants'][name] for point in points]
            style = {'marker': 'o', 'color': COLOURS[name], 'label': name}
            times = [1e3 * median_of(f) for f in found]
            grid[0][column].plot(x, times, **style)
            memory = [f['peak_bytes'] / 1e6 for f in found]
            grid[1][column].plot(x, memory, **style)
        for row in (0, 1):
            grid[row][column].set_xlim(left=0)
            grid[row][column].set_ylim(bottom=0)
            grid[row][column].grid(alpha=0.3)
        grid[1][column].set_xlabel(axis)
    grid[0][0].set_ylabel('forward + backward [ms]')
    grid[1][0].set_ylabel('peak extra memory [MB]')
    grid[0][0].legend(fontsize='small')
    figure.tight_layout()
    return figure


def plot_choices(by_axis: dict[str, list[Result]]) -> Figure | None:
    """Time of LORS over that of the dense decoder, against rank and K.

    Args:
        by_axis: Results by the name of the axis.
    """
    axes_of = [axis for axis in CHOICES if axis in by_axis]
    if not axes_of:
        return None
    figure = Figure(figsize=(3.6 * len(axes_of), 3))
    grid: Any = figure.subplots(1, len(axes_of), squeeze=False, sharey=True)
    for axes, axis in zip(grid[0], axes_of, strict=True):
        points = by_axis[axis]
        x = [point['case'][AXES[axis][0]] for point in points]
        for name in ('reference', 'lors'):
            spreads = [_against_dense(point, name) for point in points]
            middle = [spread.median for spread in spreads]
            low = [spread.low for spread in spreads]
            high = [spread.high for spread in spreads]
            axes.plot(x, middle, marker='o', color=COLOURS[name], label=name)
            axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.2)
        axes.axhline(1, color=COLOURS['dense'], label='dense')
        axes.set_xticks(x)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis)
        axes.grid(alpha=0.3)
    grid[0][0].set_ylabel('forward, time over dense')
    grid[0][0].legend(fontsize='small')
    figure.tight_layout()
    return figure


def _against_dense(point: Result, name: str) -> Spread:
    variants = point['variants']
    return ratio(variants[name]['seconds'], variants['dense']['seconds'])
