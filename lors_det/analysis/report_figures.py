# SPDX-License-Identifier: Apache-2.0
"""The figures of a report on detections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lors_det.analysis.average_precision import RECALLS, Array, with_mean
from lors_det.analysis.detection_errors import (
    NOTHING,
    Confident,
    Errors,
)
from lors_det.analysis.pictures import COLORS

MODEL_COLORS = (COLORS[0], COLORS[3])
#: Curves and matrices show that many classes, those with the most objects.
MAX_CURVES, MAX_CONFUSED = 5, 20


def draw_curves(
    models: Mapping[str, Array], sizes: Mapping[str, int]
) -> Figure:
    """Draw precision against recall, for all classes and the largest ones.

    Args:
        models: Curves by the model's name; see `precision_curves`.
        sizes: Number of objects by the name of the class.
    """
    names = [f'{name} ({size})' for name, size in sizes.items()]
    order = np.argsort(-np.array(list(sizes.values())), kind='stable')
    shown = np.sort(order[:MAX_CURVES])
    titles = ['all classes', *(names[k] for k in shown)]
    num_columns = min(len(titles), 4)
    num_rows = -(-len(titles) // num_columns)
    figure = Figure(figsize=(11, 0.4 + 2.9 * num_rows), layout='constrained')
    panels = figure.subplots(
        num_rows, num_columns, sharex=True, sharey=True, squeeze=False
    ).flatten()
    for (name, precision), color in zip(
        models.items(), MODEL_COLORS, strict=False
    ):
        curves = with_mean(precision[..., 0].transpose(2, 0, 1))
        for axes, k in zip(panels, [0, *(shown + 1)], strict=False):
            for threshold, style in ((0, '-'), (5, '--')):
                axes.plot(
                    RECALLS, curves[k, threshold], style, color=color,
                    label=f'{name}, IoU {0.5 + 0.05 * threshold:g}',
                )  # fmt: skip
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize='medium')
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel='recall')
        axes.xaxis.set_major_formatter('{x:g}')  # narrow
        axes.grid(alpha=0.3)
    for axes in panels[::num_columns]:
        axes.set_ylabel('precision')
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc='outside lower center', ncols=4, frameon=False,
    )  # fmt: skip
    return figure


def draw_errors(models: Mapping[str, Errors]) -> Figure:
    """Draw what each kind of error costs.

    Args:
        models: Errors by the model's name.
    """
    costs = pd.DataFrame({n: each.costs() for n, each in models.items()})
    figure = Figure(figsize=(5.4, 3.6), layout='constrained')
    axes = figure.subplots()
    (100 * costs).plot.barh(ax=axes, color=MODEL_COLORS, width=0.8)
    containers: list[Any] = axes.containers
    for bars in containers:
        axes.bar_label(bars, fmt='%.1f', padding=3, fontsize='small')
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel('AP50 lost, points')
    axes.legend(fontsize='small')
    return figure


def draw_calibration(models: Mapping[str, Errors]) -> Figure:
    """Draw how often detections are right, by their score.

    Args:
        models: Errors by the model's name.
    """
    figure = Figure(figsize=(5.4, 3.6), layout='constrained')
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color='grey', linewidth=1, label='calibrated')
    for (name, errors), color in zip(
        models.items(), MODEL_COLORS, strict=False
    ):
        bins = _bins(errors.detections)
        axes.plot(bins['score'], bins['hit'], color=color, label=name)
        area = 10 + 25 * np.log10(bins['count'])
        axes.scatter(bins['score'], bins['hit'], area, color=color)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel='score')
    axes.set_ylabel('share that is right (IoU 0.5)')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    return figure


def calibration_error(detections: pd.DataFrame) -> float:
    """Return the expected calibration error over ten bins of the score.

    Source: Guo et al., ICML 2017, Eq. 3, with "right" for IoU 0.5 and class.

    Args:
        detections: See `Errors`.
    """
    bins = _bins(detections)
    gap = (bins['hit'] - bins['score']).abs()
    return float((gap * bins['count']).sum() / bins['count'].sum())


def _bins(detections: pd.DataFrame) -> pd.DataFrame:
    """Return mean score, share of hits and count of ten bins of the score."""
    number = (detections['score'] * 10).astype(int).clip(0, 9)
    return detections.groupby(number).agg(
        score=('score', 'mean'), hit=('hit', 'mean'), count=('hit', 'size')
    )


def confusion_matrix(model: Confident, categories: list[int]) -> Array:
    """Count what objects are taken for.

    Args:
        model: Confident detections and objects.
        categories: Ids of the classes (K).

    Returns:
        (K + 1, K + 1): rows are classes of objects and last background,
        columns classes of detections and last "missed".
    """
    ids = [*categories, NOTHING]
    found, objects = model.found, model.objects
    matrix = pd.crosstab(objects['category_id'], objects['other'])
    matrix = matrix.reindex(index=ids, columns=ids, fill_value=0)
    false = found['category_id'][found['other'] == NOTHING].value_counts()
    matrix.loc[NOTHING] = false.reindex(ids, fill_value=0)
    return matrix.to_numpy()


def draw_confusion(
    models: Mapping[str, Confident], classes: Mapping[int, str]
) -> Figure:
    """Draw confusion matrices side by side.

    Args:
        models: Confident detections and objects by the model's name.
        classes: Names of the classes by their id.
    """
    matrices = [
        confusion_matrix(each, list(classes)) for each in models.values()
    ]
    # The objects of each class are the same for all models.
    sizes = matrices[0][:-1].sum(1)
    shown = np.sort(np.argsort(-sizes, kind='stable')[:MAX_CONFUSED])
    shown = np.append(shown, len(classes))
    names = list(classes.values())
    size = 1.6 + 0.55 * max(len(shown), 3)
    figure = Figure((size * len(matrices) + 0.4, size), layout='constrained')
    panels = figure.subplots(1, len(matrices), squeeze=False)
    for axes, title, matrix in zip(panels[0], models, matrices, strict=True):
        part = matrix[np.ix_(shown, shown)]
        shares = part / np.maximum(matrix.sum(1, keepdims=True)[shown], 1)
        axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(part):
            if min(row, column) < len(shown) - 1:
                axes.text(
                    column, row, f'{count}', ha='center', va='center',
                    fontsize='small',
                    color='white' if shares[row, column] > 0.5 else 'black',
                )  # fmt: skip
        ticks = range(len(shown))
        axes.set_xticks(
            ticks, [[*names, 'missed'][k] for k in shown],
            rotation=45, ha='right', rotation_mode='anchor',
        )  # fmt: skip
        axes.set_yticks(ticks, [[*names, 'background'][k] for k in shown])
        axes.set(title=title, xlabel='detected as', ylabel='object')
    return figure
