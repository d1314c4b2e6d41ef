# SPDX-License-Identifier: Apache-2.0
"""Files of results, and the document that shows them."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.plots import write_plots
from benchmarks.tables import (
    bar_table,
    case_table,
    machine_line,
    sweep_tables,
)
from lors_det.analysis.tables import markdown_table
from lors_det.errors import UsageError

#: Blocks of the document by preset; each is written between two marks.
PRESETS = ('bar', 'sweeps')
BEGIN = '<!-- {}: python -m benchmarks.decoder --render writes from here -->\n'
END = '<!-- {}: to here -->\n'


def machine() -> dict[str, Any]:
    """Name the machine, as far as times depend on it."""
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                cpu = line.split(':', 1)[1].strip()
                break
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ''
    return {
        'cpu': cpu,
        'threads': torch.get_num_threads(),
        'gpu': gpu,
        'torch': torch.__version__,
    }


def write_results(
    path: Path,
    preset: str | None,
    results: Sequence[dict[str, Any]],
    skipped: Sequence[str],
) -> None:
    """Write results as JSON, one line each.

    Args:
        path: The file.
        preset: What was run, if it was a preset.
        results: Of the cases.
        skipped: Labels of cases that this machine cannot run.
    """
    head = {'preset': preset, 'machine': machine(), 'skipped': list(skipped)}
    lines = ',\n'.join(json.dumps(result) for result in results)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head)[:-1] + f',\n"results": [\n{lines}\n]}}\n')


def read_results(path: Path) -> dict[str, Any]:
    """Read what `write_results` wrote.

    Args:
        path: The file.

    Raises:
        UsageError: If it is not there, or holds something else.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        found['results'], found['machine'], found['preset']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f'--render {path}: expected a file that --out wrote ({error!r})'
        ) from None
    return found


def render(files: Sequence[Path], document: Path) -> list[Path]:
    """Rewrite the tables of a document, and its plots.

    Args:
        files: Results of presets; those of one preset on several machines
            complete each other.
        document: Markdown with the marks; plots go into ``images`` beside it.

    Returns:
        The files written.

    Raises:
        UsageError: If a file is no result of a preset, or the document lacks
            the marks.
    """
    found = [read_results(file) for file in files]
    blocks: dict[str, list[dict[str, Any]]] = {}
    for file, data in zip(files, found, strict=True):
        if data['preset'] not in PRESETS:
            raise UsageError(f'--render {file}: is not the result of a preset')
        blocks.setdefault(data['preset'], []).append(data)
    text = document.read_text()
    if 'bar' in blocks:
        text = replace_block(text, 'bar', bar_block(blocks['bar']))
    plots: list[Path] = []
    if 'sweeps' in blocks:
        results = [r for data in blocks['sweeps'] for r in data['results']]
        plots = write_plots(results, document.parent / 'images')
        block = sweeps_block(blocks['sweeps'], plots)
        text = replace_block(text, 'sweeps', block)
    document.write_text(text)
    return [document, *plots]


def replace_block(text: str, name: str, content: str) -> str:
    """Put content between the marks of a block.

    Args:
        text: The document.
        name: Of the block.
        content: What is to be there.

    Raises:
        UsageError: If the marks are not there.
    """
    begin, end = BEGIN.format(name), END.format(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UsageError(
            f'--render: the document needs the lines {begin.strip()!r} and '
            f'{end.strip()!r}, once'
        )
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return f'{head}{begin}\n{content.strip()}\n\n{end}{tail}'


def bar_block(found: Sequence[dict[str, Any]]) -> str:
    """The table of goals, then a table for each case.

    Args:
        found: Files of the preset.
    """
    results = [result for data in found for result in data['results']]
    parts = [bar_table(results, markdown_table)]
    for data in found:
        parts.append(f'Measured on: {machine_line(data["machine"])}.')
        for result in data['results']:
            parts.append(f'**{result["label"]}**')
            parts.append(case_table(result, markdown_table))
    return '\n\n'.join(parts)


def sweeps_block(
    found: Sequence[dict[str, Any]], plots: Sequence[Path]
) -> str:
    """Plots, and a table for each axis.

    Args:
        found: Files of the preset.
        plots: In the folder ``images`` beside the document.
    """
    parts = [f'![{plot.stem}](images/{plot.name})' for plot in plots]
    for data in found:
        parts.append(f'Measured on: {machine_line(data["machine"])}.')
        for axis, table in sweep_tables(data['results'], markdown_table):
            first = next(r for r in data['results'] if r['sweep'] == axis)
            parts.append(f'**{axis}** ({first["label"]}, and so on)')
            parts.append(table)
    return '\n\n'.join(parts)
