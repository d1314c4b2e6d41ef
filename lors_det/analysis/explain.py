# SPDX-License-Identifier: Apache-2.0
"""Draw how detections came about: of one query, and of an image set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor
from torchvision.ops import box_iou

from lors_det.analysis.pictures import COLORS
from lors_det.analysis.plots import save_figure
from lors_det.analysis.trace import ImageTrace

#: A detection is settled from where on its class is the final one and its box
#: overlaps the final one by this IoU.
SETTLED_IOU = 0.9
ATTENDED = 3  # other queries that a panel shows
COLUMNS = 3
BEFORE, AFTER, OTHERS = COLORS[0], COLORS[3], COLORS[2]


def plot_query(trace: ImageTrace, query: int, label: int, file: Path) -> None:
    """Draw what every stage did to a query, two panels for each.

    Args:
        trace: Of the image.
        query: Index of the query.
        label: Index of the class whose score is shown.
        file: Picture to write; its ending is the format.
    """
    columns = min(COLUMNS, len(trace.stages))
    rows = math.ceil(len(trace.stages) / columns)
    height, width = trace.image.shape[:2]
    inches = (max(3.2 * columns, 8), 1.3 + rows * (1 + 6.3 * height / width))
    layout = ConstrainedLayoutEngine(h_pad=0.07, compress=True)
    figure = Figure(figsize=inches, layout=layout)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for unused in axes.flat:
        unused.set_axis_off()
    for stage in range(len(trace.stages)):
        row, column = divmod(stage, columns)
        pair = axes[2 * row : 2 * row + 2, column]
        _draw_stage(pair, trace, stage, query, label)
    _add_legends(figure, axes, trace, query, label)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def animate_query(
    trace: ImageTrace, query: int, label: int, file: Path
) -> None:
    """Draw the same as `plot_query`, one frame per stage.

    Args:
        trace: Of the image.
        query: Index of the query.
        label: Index of the class whose score is shown.
        file: GIF to write.
    """
    height, width = trace.image.shape[:2]
    figure = Figure(
        figsize=(9.6, 1.8 + 4.8 * height / width), layout='constrained'
    )
    axes = figure.subplots(1, 2)
    _add_legends(figure, axes, trace, query, label)
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = PillowWriter(fps=1)
    with writer.saving(figure, str(file), dpi=100):
        for stage in range(len(trace.stages)):
            for panel in axes:
                panel.clear()
            _draw_stage(axes, trace, stage, query, label)
            writer.grab_frame()


def _draw_stage(
    axes: Any, trace: ImageTrace, stage: int, query: int, label: int
) -> None:
    """Draw boxes in the whole image, and sampling points around the query."""
    boxes, zoom = axes
    found = trace.stages[stage]
    before, after = found.before[query], found.after[query]
    height, width = trace.image.shape[:2]
    for panel in axes:
        panel.set(xticks=[], yticks=[], facecolor='0.85')
        panel.set_axis_on()
        panel.imshow(trace.image, extent=(0, width, height, 0), alpha=0.8)

    attention = found.attention[query]
    others = attention.clone()
    others[query] = 0
    share, index = others.topk(min(ATTENDED, len(others) - 1))
    shares = [f'itself {attention[query]:.0%}']
    for weight, other in zip(share.tolist(), index.tolist(), strict=True):
        _draw_box(boxes, found.before[other], OTHERS, 0.6 + 8 * weight)
        shares.append(f'#{other} {weight:.0%}')
    for panel in axes:  # the new box under the old one: both are seen
        _draw_box(panel, after, AFTER, 2)
        _draw_box(panel, before, BEFORE, 1.5, '--')
    score = found.scores[query, label]
    boxes.set_title(
        f'stage {stage + 1}: {trace.classes[label]} {score:.2f}', fontsize=12
    )
    boxes.set_xlabel('attends to ' + ', '.join(shares), fontsize=8)
    boxes.set(xlim=(0, width), ylim=(height, 0))

    points = found.points[query]
    strides = torch.tensor(trace.strides)
    mean_level = found.level_weights[query] @ strides.log2()
    for group, size in enumerate(_sizes(points)):
        x, y, _ = points[group].T
        zoom.scatter(
            x, y, size, mean_level[group], norm=_level_norm(trace),
            edgecolors='white', linewidths=0.5, zorder=3,
        )  # fmt: skip
    corners = torch.cat(
        [points[..., :2].flatten(0, 1), before.view(2, 2), after.view(2, 2)]
    )
    middle = (corners.amin(0) + corners.amax(0)) / 2
    # The panel keeps the shape of the image.
    sides = torch.tensor([width, height])
    half = sides * ((corners.amax(0) - corners.amin(0)) / sides).max() * 0.54
    left, top, right, bottom = torch.cat(
        [middle - half, middle + half]
    ).tolist()
    zoom.set(xlim=(left, right), ylim=(bottom, top))
    text = f'{right - left:.0f} x {bottom - top:.0f} pixels'
    zoom.set_xlabel(f'sampling points, {text}', fontsize=8)


def _draw_box(
    axes: Axes, box: Tensor, color: str, width: float, style: str = '-'
) -> None:
    left, top, right, bottom = box.tolist()
    outline = [withStroke(linewidth=width + 1.5, foreground='white')]
    patch = Rectangle(
        (left, top), right - left, bottom - top, fill=False, color=color,
        linewidth=width, linestyle=style, zorder=2,
        path_effects=outline if style == '-' else None,
    )  # fmt: skip
    axes.add_patch(patch)


def _sizes(points: Tensor) -> list[float]:
    """Return the area of a point of each group."""
    return np.linspace(12, 72, len(points)).tolist()


def _level_norm(trace: ImageTrace) -> Normalize:
    """Map log2 of a stride to colours."""
    return Normalize(*np.log2([trace.strides[0], trace.strides[-1]]))


def _add_legends(
    figure: Figure, axes: Any, trace: ImageTrace, query: int, label: int
) -> None:
    """Say what is drawn how, above and below all panels."""
    figure.suptitle(f'query #{query}, {trace.classes[label]}')
    lines = [
        Line2D([], [], color=BEFORE, linestyle='--', label='box before'),
        Line2D([], [], color=AFTER, label='box after the stage'),
        Line2D([], [], color=OTHERS, label='queries it attends to most'),
    ]
    groups = [
        Line2D(
            [], [], linestyle='', marker='o', color='0.3',
            markersize=math.sqrt(size), label=f'points of group {group + 1}',
        )
        for group, size in enumerate(_sizes(trace.stages[0].points[0]))
    ]  # fmt: skip
    figure.legend(
        handles=lines + groups, loc='outside lower center', ncols=4,
        fontsize=9,
    )  # fmt: skip
    bar = figure.colorbar(
        ScalarMappable(_level_norm(trace)), ax=axes, location='bottom',
        aspect=60, shrink=0.7, pad=0.01, ticks=np.log2(trace.strides),
        label='stride of the level that a point reads (weighted mean), pixels',
    )  # fmt: skip
    bar.ax.set_xticklabels([str(stride) for stride in trace.strides])


class Summary(NamedTuple):
    """Changes of the detections D of one or more images by the stages.

    Args:
        levels: (D, stages, levels) mean level weights of the points.
        moves: (D, stages) how far the centre moved, in units of the scale
            sqrt(w h) of the final box.
        settled: (D) the stage, from 0, that settled the detection.
    """

    levels: Tensor
    moves: Tensor
    settled: Tensor


def summarise(trace: ImageTrace, min_score: float) -> Summary:
    """Collect what the plots of an image set show.

    Args:
        trace: Of one image.
        min_score: Detections of a lower score are left out.
    """
    kept = trace.scores >= min_score
    queries, labels = trace.queries[kept], trace.labels[kept]
    levels, moves, same = [], [], []
    final = trace.stages[-1].after[queries]
    scale = (final[:, 2:] - final[:, :2]).prod(-1).clamp(min=1e-6).sqrt()
    for stage in trace.stages:
        before, after = stage.before[queries], stage.after[queries]
        levels.append(stage.level_weights[queries].mean((1, 2)))
        shift = (after - before).view(-1, 2, 2).mean(1)
        moves.append(shift.norm(dim=-1) / scale)
        overlap = box_iou(after, final).diagonal()
        is_class = stage.scores[queries].argmax(-1) == labels
        same.append(is_class & (overlap >= SETTLED_IOU))
    # Counted from the end: how many stages in a row agree with the last one.
    agreeing = torch.stack(same, 1).flip(1).long().cumprod(1).sum(1)
    settled = (len(same) - agreeing).clamp(max=len(same) - 1)
    return Summary(torch.stack(levels, 1), torch.stack(moves, 1), settled)


def plot_images(
    summaries: Sequence[Summary], strides: Sequence[int], folder: Path
) -> list[Path]:
    """Draw what the stages did to the detections of an image set.

    Args:
        summaries: One per image, with one detection at least.
        strides: Stride of every level in pixels.
        folder: Where to write to.

    Returns:
        The files: ``stages.svg`` and ``stages.png``.
    """
    levels, moves, settled = (
        torch.cat(part) for part in zip(*summaries, strict=True)
    )
    count, num_stages = moves.shape
    stages = np.arange(1, num_stages + 1)
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    used, moved, done = figure.subplots(1, 3)
    figure.suptitle(f'{count} detections in {len(summaries)} images')
    share = pd.DataFrame(levels.mean(0).numpy() * 100, stages, strides)
    share.plot.bar(
        ax=used, stacked=True, width=0.8, colormap='viridis', xlabel='stage',
        ylabel='level weight [%]', ylim=(0, 100), rot=0,
    )  # fmt: skip
    used.legend(
        title='stride [pixels]', ncols=len(strides), fontsize='small',
        loc='lower center', bbox_to_anchor=(0.5, 1), columnspacing=1,
        handlelength=1, frameon=False,
    )  # fmt: skip
    moved.boxplot(
        moves.clamp(min=1e-4).numpy(), whis=(5, 95), showfliers=False,
        medianprops={'color': AFTER, 'linewidth': 2},
    )  # fmt: skip
    moved.set(yscale='log', ylabel='move of the centre [sizes of the box]')
    moved.yaxis.set_major_formatter('{x:g}')
    moved.set_title('median, quartiles, 5 to 95 %', fontsize='medium')
    settled_in = np.bincount(settled.numpy(), minlength=num_stages)
    done.bar_label(done.bar(stages, settled_in, color=BEFORE))
    done.margins(y=0.1)
    done.set(ylabel='detections settled by the stage')
    done.set_title(
        f'final class, IoU {SETTLED_IOU} with the final box',
        fontsize='medium',
    )
    for axes in (moved, done):
        axes.set(xlabel='stage', xticks=stages)
    return save_figure(figure, folder, 'stages')
