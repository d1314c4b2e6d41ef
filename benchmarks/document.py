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

from lors_det.analysis.tables import ascii_table, markdown_table
from lors_det.analysis.timing import Spread, ratio
from lors_det.errors import UsageError
from lors_det.files import atomic_write, write_between_marks

BEGIN = '<!-- python -m benchmarks.decoder --render writes from here -->\n'
END = '<!-- to here -->\n'
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


def publish(document: Path, command: str, *blocks: str) -> None:
    """Print what a command has measured, and write it into a document.

    Args:
        document: Markdown with marks of the command.
        command: Its name, as of a module of benchmarks.
        *blocks: Paragraphs and tables.
    """
    text = '\n\n'.join(blocks)
    print(text)
    begin = f'<!-- python -m benchmarks.{command} writes from here -->\n'
    end = f'<!-- end of {command} -->\n'
    write_between_marks(document, begin, end, f'\n{text}\n\n')


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Write results of `benchmarks.checked.run_case` as JSON."""
    found = {'machine': machine(), 'results': results}
    atomic_write(path, json.dumps(found, indent=1) + '\n')


def render(files: Iterable[Path], document: Path) -> None:
    """Rewrite the tables of a document.

    Args:
        files: Results of one machine each, in the order of the document.
        document: Markdown with the marks.

    Raises:
        UsageError: If a file holds no results, or the document lacks the
            marks.
    """
    blocks = []
    for file in files:
        try:
            data = json.loads(file.read_text())
            text = tables(data['results'], markdown_table)
            blocks.append(f'Measured on: {data["machine"]}.\n\n{text}\n\n')
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f'--render {file}: expected a file that --out wrote '
                f'({error!r})'
            ) from None
    write_between_marks(document, BEGIN, END, '\n' + ''.join(blocks))


def tables(results: Sequence[Result], table: Table = ascii_table) -> str:
    """Write a table for each case.

    Args:
        results: Of `benchmarks.checked.run_case`.
        table: How to lay out a table.
    """
    return '\n\n'.join(
        f'**{result["label"]}**\n\n{table([HEADER, *rows(result)])}'
        for result in results
    )


def rows(result: Result) -> list[list[str]]:
    """Return one row for each variant; ratios are against the first."""
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
