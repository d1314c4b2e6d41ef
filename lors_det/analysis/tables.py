# SPDX-License-Identifier: Apache-2.0
"""Reports as tables: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from terminaltables import AsciiTable, GithubFlavoredMarkdownTable

from lors_det.analysis.costs import ModelReport

Table = Callable[[list[list[str]]], str]
PARTS_HEADER = [
    'part', 'shared', 'private', 'dense', 'other', 'parameters', 'GMACs',
]  # fmt: skip
COMPARISON_HEADER = [
    'config', 'decoder', 'model', 'decoder vs. first', 'model vs. first',
    'decoder vs. dense twin', 'GMACs', 'checkpoint fp32 / fp16',
    'training state', 'all-reduced per step',
]  # fmt: skip
LEGEND = (
    'Dense twin: every stack of the decoder dense, same shape. GMACs: 10^9 '
    'multiply-adds of matrix products, convolutions and attention for one '
    'image of 1333 x 800. Training state: weights, gradients and the two '
    'moments of AdamW.'
)


def ascii_table(rows: list[list[str]]) -> str:
    """A table for a terminal; the first row is its header."""
    return str(AsciiTable(rows).table)


def markdown_table(rows: list[list[str]]) -> str:
    """A table in Markdown; the first row is its header."""
    return str(GithubFlavoredMarkdownTable(rows).table)


def format_reports(
    reports: Mapping[str, ModelReport], table: Table = ascii_table
) -> str:
    """Tables of the parts of every model, and one that compares them.

    Args:
        reports: Reports by the name of their config; the first is what the
            others are compared with.
        table: How to lay out a table.

    Returns:
        Text of several lines.
    """
    blocks = []
    for name, report in reports.items():
        blocks += [name, table([PARTS_HEADER, *parts_rows(report)])]
    blocks += [table([COMPARISON_HEADER, *comparison_rows(reports)]), LEGEND]
    return '\n\n'.join(blocks)


def parts_rows(report: ModelReport) -> list[list[str]]:
    """One row for every part.

    Args:
        report: Costs of a model.
    """
    return [
        [
            name,
            *(
                f'{n:,}'
                for n in (
                    part.shared,
                    part.private,
                    part.dense,
                    part.other,
                    part.total,
                )
            ),
            f'{part.gmacs:.2f}',
        ]
        for name, part in report.parts.items()
    ]


def comparison_rows(reports: Mapping[str, ModelReport]) -> list[list[str]]:
    """One row for every model.

    Args:
        reports: Reports by the name of their config, the reference first.
    """
    first = next(iter(reports.values()))
    rows: list[list[str]] = []
    for name, report in reports.items():
        decoder = report.parts['decoder'].total
        model = report.parts['model'].total
        rows.append(
            [
                name,
                millions(decoder),
                millions(model),
                change(decoder, first.parts['decoder'].total),
                change(model, first.parts['model'].total),
                change(decoder, report.dense_decoder),
                f'{report.parts["model"].gmacs:.1f}',
                f'{megabytes(report.checkpoint_bytes)} / '
                f'{megabytes(report.checkpoint_bytes_half)}',
                megabytes(report.training_bytes),
                megabytes(report.allreduce_bytes),
            ]
        )
    return rows


def millions(count: int) -> str:
    """A number of parameters: ``35.3 M``."""
    return f'{count / 1e6:.1f} M'


def megabytes(count: int) -> str:
    """A number of bytes: ``239.7 MB``, of 10^6 bytes."""
    return f'{count / 1e6:.1f} MB'


def change(value: float, reference: float) -> str:
    """A relative change: ``-67.9 %``."""
    return f'{100 * (value / reference - 1):+.1f} %'


def names_of(paths: Sequence[str]) -> list[str]:
    """Short names of config files, told apart by their folders if needed.

    Args:
        paths: Paths of config files.
    """
    stems = [path.rsplit('/', 1)[-1].removesuffix('.py') for path in paths]
    return [
        stem if stems.count(stem) == 1 else path
        for stem, path in zip(stems, paths, strict=True)
    ]
