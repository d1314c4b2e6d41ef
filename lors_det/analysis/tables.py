# SPDX-License-Identifier: Apache-2.0
"""Write tables: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

from terminaltables import AsciiTable, GithubFlavoredMarkdownTable

from lors_det.analysis.costs import ModelReport

Table = Callable[[list[list[str]]], str]
LEGEND = (
    'Dense counterpart: the same decoder with all stacks dense. GMACs: 10^9 '
    'multiply-adds of matrix products, convolutions and attention for one '
    'image of 1333 x 800. Training state: weights, gradients and the two '
    'moments of AdamW.'
)


def ascii_table(rows: list[list[str]]) -> str:
    """Write a table for a terminal; the first row is its header."""
    return str(AsciiTable(rows).table)


def markdown_table(rows: list[list[str]]) -> str:
    """Write a table in Markdown; the first row is its header."""
    return str(GithubFlavoredMarkdownTable(rows).table)


def format_reports(
    reports: Mapping[str, ModelReport], table: Table = ascii_table
) -> str:
    """Write a table of the parts of every model, and one that compares them.

    Args:
        reports: Reports by the name of their config; the first is what the
            others are compared with.
        table: How to lay out a table.

    Returns:
        Text of several lines.
    """
    first = next(iter(reports.values())).parts
    comparison = [
        [
            'config', 'decoder', 'model', 'decoder vs. first',
            'model vs. first', 'decoder vs. dense counterpart', 'GMACs',
            'checkpoint fp32 / fp16', 'training state',
            'all-reduced per step',
        ]
    ]  # fmt: skip
    blocks = []
    for name, report in reports.items():
        parts = [
            ['part', 'shared', 'private', 'dense', 'other', 'parameters',
             'GMACs']
        ]  # fmt: skip
        for key, part in report.parts.items():
            *counts, gmacs = astuple(part)
            parts.append([key, *(f'{n:,}' for n in counts), f'{gmacs:.2f}'])
        blocks += [name, table(parts)]
        decoder = report.parts['decoder'].total
        model = report.parts['model']
        comparison.append(
            [
                name,
                millions(decoder),
                millions(model.total),
                change(decoder, first['decoder'].total),
                change(model.total, first['model'].total),
                change(decoder, report.dense_decoder),
                f'{model.gmacs:.1f}',
                f'{megabytes(report.checkpoint_bytes)} / '
                f'{megabytes(report.checkpoint_bytes_half)}',
                megabytes(report.training_bytes),
                megabytes(report.allreduce_bytes),
            ]
        )
    return '\n\n'.join([*blocks, table(comparison), LEGEND])


def millions(count: int) -> str:
    """Write a number of parameters: ``35.3 M``."""
    return f'{count / 1e6:.1f} M'


def megabytes(count: int) -> str:
    """Write a number of bytes: ``239.7 MB``, of 10^6 bytes."""
    return f'{count / 1e6:.1f} MB'


def change(value: float, reference: float) -> str:
    """Write a relative change: ``-67.9 %``."""
    return f'{100 * (value / reference - 1):+.1f} %'


def names_of(paths: Sequence[str]) -> list[str]:
    """Return short names of config files; whole paths where two are equal.

    Args:
        paths: Paths of config files.
    """
    stems = [path.rsplit('/', 1)[-1].removesuffix('.py') for path in paths]
    return [
        stem if stems.count(stem) == 1 else path
        for stem, path in zip(stems, paths, strict=True)
    ]
