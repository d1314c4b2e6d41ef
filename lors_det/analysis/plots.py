# SPDX-License-Identifier: Apache-2.0
"""Plots of what detectors cost: over depth, over rank and K, by part."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lors_det.analysis.costs import ModelReport, build_on_meta
from lors_det.lors import count_parameters

DEPTHS = (1, 2, 3, 4, 6, 9, 12)
RANKS = (4, 8, 16, 32, 64)
GROUPS = (1, 2, 3, 4)
PART_COLOURS = {
    'backbone': '#9aa5b1',
    'neck': '#c9d1d9',
    'decoder.attention': '#3b6fb6',
    'decoder.sampling': '#78a9d6',
    'decoder.ffn': '#5b4a9c',
    'decoder.heads': '#a79bd8',
    'mixing, dense': '#7a2e2e',
    'mixing, shared': '#d1603d',
    'mixing, private': '#f0b27a',
}


def write_plots(
    model_cfgs: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, ModelReport],
    folder: Path,
) -> list[Path]:
    """Draw all plots, each as SVG and PNG.

    Args:
        model_cfgs: The ``model`` of every config, by its name.
        reports: Their reports, by the same names.
        folder: Where to write to; made if it is not there.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in (
        ('depth', plot_depth(model_cfgs)),
        ('rank', plot_rank(model_cfgs)),
        ('parts', plot_parts(reports)),
    ):
        if figure is not None:
            for ending in ('svg', 'png'):
                file = folder / f'{name}.{ending}'
                figure.savefig(file, dpi=150, bbox_inches='tight')
                files.append(file)
    return files


def plot_depth(model_cfgs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Parameters of the decoder against its number of stages.

    Args:
        model_cfgs: The ``model`` of every config, by its name.
    """
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for name, model_cfg in model_cfgs.items():
        counts = [
            _decoder_parameters(_at_depth(model_cfg, depth))
            for depth in DEPTHS
        ]
        axes.plot(DEPTHS, [c / 1e6 for c in counts], marker='o', label=name)
    axes.set_xlabel('decoder stages')
    axes.set_ylabel('parameters of the decoder [millions]')
    axes.set_xticks(DEPTHS)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    return figure


def plot_rank(model_cfgs: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Parameters of the decoder over rank and K of the mixing kernels.

    Args:
        model_cfgs: The ``model`` of every config, by its name; the first with
            a private part is drawn.

    Returns:
        None if no config has a private part.
    """
    for name, model_cfg in model_cfgs.items():
        stacks = model_cfg['decoder'].get('stacks') or {}
        kernels = stacks.get('mixing_kernels') or {}
        if kernels.get('mode') not in ('lors', 'private'):
            continue
        # A term of a higher rank than the matrices' shorter side is an error.
        decoder = model_cfg['decoder']
        width = decoder['embed_dims'] // decoder['num_groups']
        limit = min(width, decoder['in_points'], decoder['out_points'])
        ranks = [rank for rank in RANKS if rank <= limit]
        grid = []
        for groups in GROUPS:
            row = []
            for rank in ranks:
                cfg = copy.deepcopy(model_cfg)
                cfg['decoder']['stacks']['mixing_kernels'].update(
                    rank=rank, num_param_groups=groups
                )
                row.append(_decoder_parameters(cfg) / 1e6)
            grid.append(row)
        figure = Figure(figsize=(6, 4))
        axes = figure.subplots()
        axes.imshow(grid, origin='lower', aspect='auto', cmap='YlGnBu')
        middle = (grid[0][0] + grid[-1][-1]) / 2
        for y, row in enumerate(grid):
            for x, value in enumerate(row):
                colour = 'white' if value > middle else 'black'
                axes.text(
                    x,
                    y,
                    f'{value:.1f}',
                    ha='center',
                    va='center',
                    color=colour,
                )
        axes.set_xticks(range(len(ranks)), [str(r) for r in ranks])
        axes.set_yticks(range(len(GROUPS)), [str(k) for k in GROUPS])
        axes.set_xlabel('rank r of the mixing kernels')
        axes.set_ylabel('parameter groups K, all stages')
        axes.set_title(f'decoder [millions of parameters], {name}', fontsize=9)
        return figure
    return None


def plot_parts(reports: Mapping[str, ModelReport]) -> Figure:
    """Share of each part in a model's parameters.

    Args:
        reports: Reports by the name of their config.
    """
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(reports)))
    axes = figure.subplots()
    for y, report in enumerate(reports.values()):
        left = 0.0
        for part, colour in PART_COLOURS.items():
            width = _share(report, part) / 1e6
            label = part if y == 0 else None
            axes.barh(y, width, left=left, color=colour, label=label)
            left += width
    axes.set_yticks(range(len(reports)), list(reports))
    axes.invert_yaxis()
    axes.set_xlabel('parameters [millions]')
    axes.legend(
        fontsize='small',
        ncols=3,
        loc='upper center',
        bbox_to_anchor=(0.4, -0.3),
    )
    return figure


def _share(report: ModelReport, part: str) -> int:
    """Parameters of one colour of the bar."""
    if part in report.parts:
        return report.parts[part].total
    kind = part.removeprefix('mixing, ')
    return sum(
        int(getattr(report.parts[name], kind))
        for name in ('decoder.mixing.kernels', 'decoder.mixing.out_proj')
    )


def _at_depth(model_cfg: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """The same model with another number of stages.

    What is listed stage by stage cannot follow: K then rises as by default,
    a rank keeps its first value.
    """
    cfg = copy.deepcopy(model_cfg)
    cfg['decoder']['num_stages'] = depth
    for stack in (cfg['decoder'].get('stacks') or {}).values():
        if isinstance(stack.get('num_param_groups'), (list, tuple)):
            stack['num_param_groups'] = 'rising'
        if isinstance(stack.get('rank'), (list, tuple)):
            stack['rank'] = stack['rank'][0]
    return cfg


def _decoder_parameters(model_cfg: Mapping[str, Any]) -> int:
    decoder = build_on_meta(model_cfg['decoder'])
    return count_parameters(decoder).total
