# SPDX-License-Identifier: Apache-2.0
"""Write the model zoo's page from the model index and counted costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from lors_det.analysis.costs import ModelReport, report
from lors_det.analysis.tables import markdown_table

HEADER = [
    'config', 'stages', 'queries', 'schedule', 'mixing kernels',
    'output projection', 'decoder', 'total', 'GMACs', 'AP published',
    'AP here',
]  # fmt: skip
INTRODUCTION = """\
# Model zoo

Written by `python tools/model_zoo.py` from `model-index.yml` and from the
configs; a test computes one row of each table again.

Parameters in millions. GMACs: 10^9 multiply-adds of matrix products,
convolutions and attention for one image of 1333 x 800. Mixing kernels and
output projection: mode, rank r and, where it is not 1, K parameter groups;
`dense` is plain AdaMixer. AP: COCO val2017, box AP in percent, of the paper or
its release (published) and of this code (here). **Nothing has been trained on
COCO with this code yet**: that column stays empty until someone has.
"""
SCHEDULES = {
    '1x': '12 epochs',
    'ms-3x': '36 epochs, multi-scale',
    'ms-crop-3x': '36 epochs, multi-scale and crop',
}


def read_index(index: Path) -> dict[str, list[dict[str, Any]]]:
    """Read a model index and the files that it imports.

    Args:
        index: The file ``model-index.yml``.

    Returns:
        Models by the file that lists them, in order.
    """
    names = yaml.safe_load(index.read_text('utf-8'))['Import']
    files = {name: (index.parent / name).read_text('utf-8') for name in names}
    return {name: yaml.safe_load(files[name])['Models'] for name in names}


def zoo_page(root: Path) -> str:
    """Write the page as text.

    Args:
        root: The repository's root.

    Returns:
        Markdown.
    """
    reports: dict[str, ModelReport] = {}
    blocks = [INTRODUCTION]
    for name, models in read_index(root / 'model-index.yml').items():
        rows = [_row(root, model, reports) for model in models]
        folder = Path(name).parent
        blocks.append(f'## {folder.relative_to("configs")}\n')
        blocks.append(markdown_table([HEADER, *rows]) + '\n')
    return '\n'.join(blocks)


def _row(
    root: Path, entry: Mapping[str, Any], reports: dict[str, ModelReport]
) -> list[str]:
    """Return the cells of one model; equal models share a report."""
    config = entry['Config']
    model = Config.fromfile(root / config).model
    # The number of epochs and the data are no part of the model.
    key = json.dumps(model.to_dict(), sort_keys=True, default=str)
    if key not in reports:
        reports[key] = report(model)
    parts = reports[key].parts
    decoder = model['decoder']
    stacks = decoder.get('stacks') or {}
    schedule = re.search(r'_(1x|ms-3x|ms-crop-3x)(?:_|$)', entry['Name'])
    metrics = [run.get('Metrics') or {} for run in entry.get('Results') or []]
    return [
        f'[{entry["Name"]}](../{config})',
        str(decoder['num_stages']),
        str(model['num_queries']),
        SCHEDULES[schedule[1]] if schedule else '',
        _stack(stacks.get('mixing_kernels')),
        _stack(stacks.get('mixing_out_proj')),
        f'{parts["decoder"].total / 1e6:.1f}',
        f'{parts["model"].total / 1e6:.1f}',
        f'{reports[key].gmacs["model"]:.1f}',
        str((entry.get('Metadata') or {}).get('Published box AP', '')),
        ', '.join(str(m['box AP']) for m in metrics if 'box AP' in m),
    ]


def _stack(stack: Mapping[str, Any] | None) -> str:
    """Write mode, rank and K of a stack: ``lors, r 16, K rising``."""
    mode: str = (stack or {}).get('mode', 'dense')
    if not stack or mode in ('dense', 'shared'):
        return mode
    text = f'{mode}, r {stack["rank"]}'
    groups = stack.get('num_param_groups', 1)
    return text if groups == 1 else f'{text}, K {groups}'
