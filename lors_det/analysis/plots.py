# SPDX-License-Identifier: Apache-2.0
"""Plot what detectors cost, and write figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lors_det.analysis.costs import ModelReport


def plot_parts(reports: Mapping[str, ModelReport], folder: Path) -> list[Path]:
    """Draw the parameters of models as bars, split into parts.

    Args:
        reports: Reports by the name of their config, one bar each.
        folder: Where to write to; made if it is not there.

    Returns:
        The files: ``parts.svg`` and ``parts.png``.
    """
    bars = {}
    for name, report in reports.items():
        parts = dict(report.parts)
        mixing = parts['decoder.mixing']
        for key in list(parts):
            if key in ('decoder', 'model') or key.startswith('decoder.mixing'):
                del parts[key]  # sums, and what is split in another way
        counts = {key: part.total for key, part in parts.items()}
        for kind in ('dense', 'shared', 'private', 'other'):
            counts[f'decoder.mixing, {kind}'] = getattr(mixing, kind)
        bars[name] = counts
    millions = pd.DataFrame.from_dict(bars, orient='index') / 1e6
    figure = Figure(figsize=(9, 3 + 0.4 * len(bars)), layout='constrained')
    axes = figure.subplots()
    millions.plot.barh(ax=axes, stacked=True, legend=False, colormap='tab20')
    axes.invert_yaxis()
    axes.set_xlabel('parameters [millions]')
    figure.legend(loc='outside lower center', ncols=3, fontsize='small')
    return save_figure(figure, folder, 'parts')


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as vectors and as pixels.

    Args:
        figure: The figure.
        folder: Where to write to; made if it is not there.
        name: Of the files, without ending.

    Returns:
        The files: ``name.svg`` and ``name.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f'{name}.{ending}' for ending in ('svg', 'png')]
    for file in files:
        figure.savefig(file, dpi=150)
        figure.set_layout_engine('none')  # axes stay where they are now
    return files
