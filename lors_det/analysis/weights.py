# SPDX-License-Identifier: Apache-2.0
"""Measure what the stages of a model have in common, to choose a rank."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from lors_det.analysis.plots import save_figure
from lors_det.analysis.trace import ImageTrace
from lors_det.errors import UsageError
from lors_det.lors import AdaptiveStack, StackedLinear

MAX_QUERIES = 32  # per stage; matrices are generated for each
SMALLEST = 1e-3  # singular value that is drawn
COLUMNS = 4
TINY = 1e-30  # instead of 0, where a norm divides


class StageNumbers(NamedTuple):
    """Numbers that compare one stage's weight with those of the others.

    Args:
        private_share: Norm of the private part over that of the shared part;
            nan without a shared part.
        explained_share: ``1 - |W_i - M|^2 / |W_i|^2``, where M is the mean of
            all stages: how much of the weight one matrix for all would be.
        cosines: (N) with the weight of every stage.
        singular_values: In descending order, of the residual: of
            ``W_i - W_shared``, or of ``W_i - M`` without a shared part; over
            the norm of ``W_i``. Of G groups the root of the sum of squares.
        effective_rank: See `effective_rank`, of the residual; the mean of the
            groups.
    """

    private_share: float
    explained_share: float
    cosines: list[float]
    singular_values: Tensor
    effective_rank: float


def effective_rank(singular_values: Tensor) -> Tensor:
    """Compute the effective rank, which is at most the rank.

    Source: Roy and Vetterli, "The effective rank" (EUSIPCO 2007): the
    exponential of the entropy of the singular values' distribution.

    Args:
        singular_values: (..., K), not negative.

    Returns:
        (...), 0 where all are 0.
    """
    total = singular_values.sum(-1, keepdim=True)
    share = singular_values / total.clamp(min=TINY)
    entropy = torch.special.entr(share).sum(-1)
    return entropy.exp() * (total[..., 0] > 0)


def sample_queries(traces: Iterable[ImageTrace]) -> Tensor:
    """Return queries of some images, as the mixing of each stage gets them.

    Args:
        traces: One per image.

    Returns:
        (stages, Q, C), Q at most `MAX_QUERIES`, evenly out of all.
    """
    content = torch.cat(
        [torch.stack([s.content for s in trace.stages]) for trace in traces], 1
    )
    return content[:, :: math.ceil(content.shape[1] / MAX_QUERIES)]


@torch.no_grad()
def measure_stacks(
    model: nn.Module, queries: Tensor | None = None
) -> dict[str, list[StageNumbers]]:
    """Measure the weights of all stacks, in float64.

    Args:
        model: Its modules `StackedLinear` and `AdaptiveStack` are measured.
        queries: (stages, Q, C). The weights of an `AdaptiveStack` are those
            that it generates for the queries of a stage, side by side;
            without queries it is left out.

    Returns:
        The numbers of every stage, by the name of the stack.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, StackedLinear) or (
            isinstance(module, AdaptiveStack) and queries is not None
        ):
            stack = copy.deepcopy(module).double().cpu()
            found[name] = [
                _measure_stage(*_weights(stack, queries, stage), stage)
                for stage in range(stack.num_layers)
            ]
    return found


def _weights(
    stack: StackedLinear | AdaptiveStack, queries: Tensor | None, stage: int
) -> tuple[Tensor, Tensor | None]:
    """Return weights (N, G, rows, cols) and the shared part of them."""
    layers = range(stack.num_layers)
    if isinstance(stack, StackedLinear):
        weights = torch.stack([stack.weight(i) for i in layers])[:, None]
        return weights, stack.shared
    assert queries is not None
    query = queries[stage].double()
    parts = [stack(query, i) for i in layers]
    if stack.shared is not None:
        parts.append(stack.shared(query).view_as(parts[0]))
    wide = torch.stack(parts).permute(0, 2, 3, 1, 4).flatten(3)
    return wide[: len(layers)], wide[-1] if stack.shared is not None else None


def _measure_stage(
    weights: Tensor, shared: Tensor | None, stage: int
) -> StageNumbers:
    """Compare the weight of a stage with the shared part and the others."""
    weight, mean = weights[stage], weights.mean(0)
    norms = weights.flatten(1).norm(dim=1).clamp(min=TINY)
    norm = norms[stage]
    residual = weight - (mean if shared is None else shared)
    # The squares of the singular values are the eigenvalues of this product.
    wide = residual if residual.shape[1] <= residual.shape[2] else residual.mT
    squares = torch.linalg.eigvalsh(wide @ wide.mT).clamp(min=0).flip(-1)
    private = math.nan if shared is None else residual.norm() / shared.norm()
    return StageNumbers(
        float(private),
        1 - float(((weight - mean).norm() / norm) ** 2),
        (weights.flatten(1) @ weight.flatten() / norms / norm).tolist(),
        squares.sum(0).sqrt() / norm,
        float(effective_rank(squares.sqrt()).mean()),
    )


def plot_weights(
    model: nn.Module, queries: Tensor | None, folder: Path
) -> list[Path]:
    """Draw what the stages of a model have in common.

    Args:
        model: With stacks.
        queries: See `measure_stacks`.
        folder: Where to write to.

    Returns:
        The files.

    Raises:
        UsageError: If the model has no stacks.
    """
    found = {
        name.removeprefix('decoder.'): stages
        for name, stages in measure_stacks(model, queries).items()
    }
    if not found:
        raise UsageError('CONFIG: the model has no stacked weights')
    return [
        *save_figure(_plot_shares(found), folder, 'shares'),
        *save_figure(_plot_cosines(found), folder, 'cosines'),
        *save_figure(_plot_residuals(found), folder, 'residuals'),
    ]


def _plot_shares(found: dict[str, list[StageNumbers]]) -> Figure:
    """Draw both shares, one cell per weight and stage."""
    height = 1.2 + 0.3 * len(found)
    figure = Figure(figsize=(11, height), layout='constrained')
    private, explained = figure.subplots(1, 2, sharey=True)
    for axes, column, title in (
        (private, 'private_share', 'private part / shared part\n(norms)'),
        (explained, 'explained_share', 'explained by the mean of all stages\n'
         '(of the squared norm)'),
    ):  # fmt: skip
        cells = [[getattr(s, column) for s in row] for row in found.values()]
        _draw_cells(axes, cells, list(found), title)
        axes.set_aspect('auto')
    return figure


def _plot_cosines(found: dict[str, list[StageNumbers]]) -> Figure:
    """Draw a matrix of cosines per weight."""
    figure, panels = _panels(found, 2.7)
    for axes, (name, stages) in zip(panels, found.items(), strict=True):
        numbers = [str(i + 1) for i in range(len(stages))]
        _draw_cells(axes, [s.cosines for s in stages], numbers, name)
        axes.set_ylabel('stage')
    return figure


def _draw_cells(
    axes: Axes, cells: list[list[float]], rows: list[str], title: str
) -> None:
    """Draw numbers on colours for 0 to 1, a column per stage."""
    axes.imshow(cells, cmap='cividis', vmin=0, vmax=1)
    for (y, x), value in np.ndenumerate(np.array(cells)):
        color = 'white' if value <= 0.5 else 'black'
        text = f'{value:.2f}'.replace('-0.00', '0.00').replace('nan', '-')
        axes.text(
            x, y, text, color=color, fontsize=8, ha='center', va='center'
        )
    stages = range(len(cells[0]))
    axes.set_xticks(stages, [str(i + 1) for i in stages])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize='medium')
    axes.set_xlabel('stage')


def _plot_residuals(found: dict[str, list[StageNumbers]]) -> Figure:
    """Draw the singular values of the residuals, a line per stage."""
    figure, panels = _panels(found, 2.9, sharey=True)
    for axes, (name, stages) in zip(panels, found.items(), strict=True):
        colours = mpl.colormaps['viridis'](np.linspace(0, 0.92, len(stages)))
        for index, stage in enumerate(stages):
            values = stage.singular_values
            values = values[values >= SMALLEST]
            axes.plot(
                range(1, len(values) + 1), values, color=colours[index],
                marker='.', markersize=3,
                label=f'{index + 1}: {stage.effective_rank:.1f}',
            )  # fmt: skip
        axes.set_title(name, fontsize='medium')
        axes.set(xlabel='k', yscale='log', ylim=(SMALLEST, 3))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(
            title='stage: effective rank', fontsize=7, title_fontsize=7,
            ncols=2,
        )  # fmt: skip
    figure.supylabel(
        'k-th singular value of the residual / norm of the weight'
    )
    return figure


def _panels(
    names: Collection[str], side: float, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each name."""
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(
        figsize=(side * columns, side * rows), layout='constrained'
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes: list[Axes] = grid.flatten().tolist()
    for unused in axes[len(names) :]:
        unused.set_axis_off()
    return figure, axes[: len(names)]
