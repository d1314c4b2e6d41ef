# SPDX-License-Identifier: Apache-2.0
"""Results as tables: ratios first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.presets import AXES, ROWS, SWEPT, Row
from lors_det.analysis.tables import ascii_table
from lors_det.analysis.timing import Spread, ratio

Result = Mapping[str, Any]
Table = Callable[[list[list[str]]], str]
UNMEASURED = 'not measured'
CASE_HEADER = [
    'variant', 'time', 'multiply-adds', 'peak memory', 'kept for backward',
    'ms', 'GMACs', 'peak MB', 'kept MB', 'error',
]  # fmt: skip
BAR_HEADER = [
    'what', 'where', 'official formulation', 'reach', 'measured', 'reached',
]  # fmt: skip


def case_table(result: Result, table: Table = ascii_table) -> str:
    """All variants of a case; ratios are against the first.

    Args:
        result: What `benchmarks.checked.run_case` gave.
        table: How to lay it out.
    """
    variants = result['variants']
    first = next(iter(variants.values()))
    rows = [CASE_HEADER]
    for name, found in variants.items():
        seconds = Spread.of(found['seconds'])
        rows.append(
            [
                name,
                spread(ratio(found['seconds'], first['seconds'])),
                times(found['macs'], first['macs']),
                times(found['peak_bytes'], first['peak_bytes']),
                times(found['saved_bytes'], first['saved_bytes']),
                spread(seconds, 1e3, 1),
                f'{found["macs"] / 1e9:.2f}',
                mega(found['peak_bytes']),
                mega(found['saved_bytes']),
                f'{found["error"]:.0e}',
            ]
        )
    return table(rows)


def bar_table(results: Iterable[Result], table: Table = ascii_table) -> str:
    """The table of goals; what no result holds is listed as not measured.

    Args:
        results: Of any cases.
        table: How to lay it out.
    """
    by_label = {result['label']: result for result in results}
    rows = [BAR_HEADER]
    for row in ROWS:
        measured, reached = UNMEASURED, ''
        found = by_label.get(row.case.label)
        if found is not None:
            value = row_ratio(row, found)
            measured = spread(value)
            reached = 'yes' if value.median <= row.reach else '**no**'
        where = row.case.label.split(', ', 1)[1]
        rows.append(
            [row.what, where, row.official and f'{row.official} x',
             f'<= {row.reach:.2f} x', measured, reached]
        )  # fmt: skip
    return table(rows)


def row_ratio(row: Row, result: Result) -> Spread:
    """What a line of the table of goals comes to.

    Args:
        row: The line.
        result: Of its case.
    """
    mine = result['variants'][row.subject][row.quantity]
    theirs = result['variants'][row.baseline][row.quantity]
    if row.quantity == 'seconds':
        return ratio(mine, theirs)
    return Spread.of([mine / theirs])


def sweep_tables(
    results: Iterable[Result], table: Table = ascii_table
) -> Iterator[tuple[str, str]]:
    """One table for every axis that was swept.

    Growth is time (memory) for each unit of the axis, relative to the
    smallest value: 1 is linear, less is better.

    Args:
        results: With ``sweep``, the name of an axis.
        table: How to lay it out.

    Returns:
        Axes and their tables.
    """
    swept = [result for result in results if 'sweep' in result]
    for axis in dict.fromkeys(result['sweep'] for result in swept):
        points = [result for result in swept if result['sweep'] == axis]
        yield axis, table([sweep_header(axis), *sweep_rows(axis, points)])


def sweep_header(axis: str) -> list[str]:
    """Header of an axis' table."""
    return [
        axis, 'time: lors / dense', 'lors / reference', 'peak: lors / dense',
        'lors / reference', 'growth of time', 'growth of peak',
        *(f'{name} [ms]' for name in SWEPT),
        *(f'{name} [MB]' for name in SWEPT),
    ]  # fmt: skip


def sweep_rows(axis: str, points: list[Result]) -> Iterator[list[str]]:
    """Rows of an axis' table.

    Args:
        axis: Name of the axis.
        points: Results, from the smallest value on.
    """
    field = AXES[axis][0]
    linear = axis in ('batch', 'queries', 'stages')
    first = points[0]
    for point in points:
        variants = point['variants']
        lors, dense = variants['lors'], variants['dense']
        plain = variants['reference']
        units = point['case'][field] / first['case'][field]
        start = first['variants']['lors']
        time = median_of(lors) / median_of(start) / units
        peak = lors['peak_bytes'] / start['peak_bytes'] / units
        yield [
            str(point['case'][field]),
            spread(ratio(lors['seconds'], dense['seconds'])),
            spread(ratio(lors['seconds'], plain['seconds'])),
            times(lors['peak_bytes'], dense['peak_bytes']),
            times(lors['peak_bytes'], plain['peak_bytes']),
            f'{time:.2f}' if linear else '',
            f'{peak:.2f}' if linear else '',
            *(
                spread(Spread.of(variants[name]['seconds']), 1e3, 1)
                for name in SWEPT
            ),
            *(mega(variants[name]['peak_bytes']) for name in SWEPT),
        ]


def median_of(found: Mapping[str, Any]) -> float:
    """Median seconds of a variant."""
    return Spread.of(found['seconds']).median


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in words."""
    gpu = f', {machine["gpu"]}' if machine['gpu'] else ''
    return (
        f'{machine["cpu"]}, {machine["threads"]} threads{gpu}; '
        f'torch {machine["torch"]}'
    )


def spread(value: Spread, scale: float = 1, digits: int = 2) -> str:
    """``1.47 (1.45-1.50)``: median and quartiles."""
    middle, low, high = (
        f'{scale * x:.{digits}f}'
        for x in (value.median, value.low, value.high)
    )
    return middle if low == high else f'{middle} ({low}-{high})'


def times(value: int | None, baseline: int | None) -> str:
    """A ratio of counts; empty where there is none."""
    if value is None or not baseline:
        return ''
    return f'{value / baseline:.2f}'


def mega(count: int | None) -> str:
    """A number of bytes in 10^6 bytes."""
    return '' if count is None else f'{count / 1e6:.0f}'
