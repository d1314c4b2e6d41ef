# SPDX-License-Identifier: Apache-2.0
"""Write tables: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
    header = [
        'part', 'shared', 'private', 'dense', 'other', 'parameters', 'GMACs'
    ]  # fmt: skip
    blocks = []
    for name, report in reports.items():
        parts = [header]
        for key, part in report.parts.items():
            counts = (
                part.shared, part.private, part.dense, part.other, part.total
            )  # fmt: skip
            gmacs = f'{report.gmacs[key]:.2f}'
            parts.append([key, *(f'{n:,}' for n in counts), gmacs])
        blocks += [name, table(parts)]
        decoder, model = report.parts['decoder'], report.parts['model']
        full, half, state, gradients = (
            f'{size / 1e6:.1f} MB'
            for size in (
                report.checkpoint_bytes, report.checkpoint_bytes_half,
                report.training_bytes, report.allreduce_bytes,
            )
        )  # fmt: skip
        comparison.append(
            [
                name,
                f'{decoder.total / 1e6:.1f} M',
                f'{model.total / 1e6:.1f} M',
                _change(decoder.total, first['decoder'].total),
                _change(model.total, first['model'].total),
                _change(decoder.total, decoder.dense_total),
                f'{report.gmacs["model"]:.1f}',
                f'{full} / {half}',
                state,
                gradients,
            ]
        )
    return '\n\n'.join([*blocks, table(comparison), LEGEND])


def _change(value: float, reference: float) -> str:
    """Write a relative change: ``-67.9 %``."""
    return f'{100 * (value / reference - 1):+.1f} %'
