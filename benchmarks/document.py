# SPDX-License-Identifier: Apache-2.0
"""Files of results, and the tables of docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import SWEEPS
from lors_det.analysis.tables import ascii_table, markdown_table
from lors_det.analysis.timing import Spread, ratio
from lors_det.errors import UsageError
from lors_det.files import atomic_write, write_between_marks

PRESETS = ('compare', 'sweeps')
BEGIN = '<!-- {}: python -m benchmarks.decoder --render writes from here -->\n'
END = '<!-- {}: to here -->\n'
HEADER = [
    'variant', 'time', 'multiply-adds', 'peak memory', 'ms', 'GMACs',
    'peak MB', 'error',
]  # fmt: skip
Result = Mapping[str, Any]
Table = Callable[[list[list[str]]], str]


def machine() -> str:
    """Describe the machine, as far as times depend on it."""
    info = Path('/proc/cpuinfo')
    text = info.read_text() if info.is_file() else ''
    cpu = re.search(r'model name\s*:\s*(.+)', text)
    threads = f'{torch.get_num_threads()} threads'
    words = [cpu[1] if cpu else platform.machine(), threads]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    words.append(f'torch {torch.__version__}')
    words += [f'{k}={v}' for k, v in os.environ.items() if 'MALLOC' in k]
    return ', '.join(words)


def write_results(
    path: Path, preset: str | None, results: Sequence[Result]
) -> None:
    """Write results as JSON.

    Args:
        path: The file.
        preset: What was run; None for a case of the user's own.
        results: Of the cases.
    """
    found = {'preset': preset, 'machine': machine(), 'results': results}
    atomic_write(path, json.dumps(found, indent=1) + '\n')


def render(files: Iterable[Path], document: Path) -> None:
    """Rewrite the tables of a document.

    Args:
        files: Results of presets; those of one preset on several machines
            follow each other.
        document: Markdown with the marks.

    Raises:
        UsageError: If a file is no result of a preset, or the document lacks
            the marks.
    """
    blocks: dict[str, list[str]] = {}
    for file in files:
        try:
            data = json.loads(file.read_text())
            text = tables(data['results'], markdown_table)
            text = f'Measured on: {data["machine"]}.\n\n{text}'
            blocks.setdefault(data['preset'], []).append(text)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f'--render {file}: expected a file that --out wrote '
                f'({error!r})'
            ) from None
    if not set(blocks) <= set(PRESETS):
        raise UsageError('--render: expected results of --preset only')
    for name, parts in blocks.items():
        text = '\n\n'.join(parts)
        begin, end = BEGIN.format(name), END.format(name)
        write_between_marks(document, begin, end, f'\n{text}\n\n')


def tables(results: Sequence[Result], table: Table = ascii_table) -> str:
    """Lay results out: a table for each case, and one for each sweep.

    Args:
        results: What `benchmarks.checked.run_case` returned, some with the
            swept axis in ``sweep``.
        table: How to lay out a table.
    """
    parts = []
    for result in results:
        if result.get('sweep') is None:
            parts += [f'**{result["label"]}**', table([HEADER, *rows(result)])]
    for axis, (field, _, _) in SWEEPS.items():
        points = [r for r in results if r.get('sweep') == axis]
        if points:
            parts.append(f'**{axis}**: {points[0]["label"]}, and so on')
            lines = [
                [str(point['case'][field]), *row]
                for point in points
                for row in rows(point)
            ]
            parts.append(table([[axis, *HEADER], *lines]))
    return '\n\n'.join(parts)


def rows(result: Result) -> list[list[str]]:
    """Return one row for each variant; ratios are against the first.

    Args:
        result: Of a case.
    """
    first = next(iter(result['variants'].values()))
    lines = []
    for name, found in result['variants'].items():
        peak, baseline = found['peak_bytes'], first['peak_bytes']
        lines.append(
            [
                name,
                ratio(found['seconds'], first['seconds']).text(),
                f'{found["macs"] / first["macs"]:.2f}',
                f'{peak / baseline:.2f}' if peak and baseline else '',
                Spread.of(found['seconds']).text(1, 1e3),
                f'{found["macs"] / 1e9:.2f}',
                f'{peak / 1e6:.0f}' if peak else '',
                f'{found["error"]:.0e}',
            ]
        )
    return lines
