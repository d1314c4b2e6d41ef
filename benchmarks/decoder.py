# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the decoder: python -m benchmarks.decoder [--help]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from benchmarks.cases import (
    DTYPES,
    MODES,
    PARTS,
    Case,
    settings,
)
from benchmarks.checked import WrongResult, run_case
from benchmarks.document import PRESETS, machine, render, write_results
from benchmarks.presets import AXES, BAR, SWEPT, sweep, sweeps
from benchmarks.tables import bar_table, case_table, machine_line, sweep_tables
from benchmarks.variants import FORWARD_ONLY, VARIANTS
from lors_det.adamixer import AdaMixerDecoder
from lors_det.analysis.tables import ascii_table, markdown_table
from lors_det.analysis.timing import keep_freed_memory
from lors_det.errors import UsageError

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'performance.md'
#: Options that describe one case, by the field that they set.
SHAPE = (
    'part', 'mode', 'dtype', 'batch', 'queries', 'stages', 'rank',
    'num_param_groups', 'image_size', 'variants',
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write.

    Args:
        arguments: Those of the process if None.
    """
    args = _parser().parse_args(arguments)
    try:
        if args.render:
            for path in render(args.render, args.document):
                print(f'wrote {path}')
            return
        cases, skipped = _cases(args)
        if args.threads:
            torch.set_num_threads(args.threads)
        _measure(args, cases, skipped)
    except (UsageError, WrongResult) as error:
        raise SystemExit(f'error: {error}') from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.decoder',
        description='Measure variants of the decoder side by side; each is '
        'compared with a float64 reference first. Ratios are against the '
        'first variant.',
    )
    parser.add_argument('--part', choices=PARTS, help='mixing by default')
    parser.add_argument('--mode', choices=MODES, help='forward by default')
    parser.add_argument('--dtype', choices=DTYPES)
    for name in ('batch', 'queries', 'stages', 'rank'):
        parser.add_argument(f'--{name}', type=int)
    parser.add_argument(
        '--param-groups', type=int, dest='num_param_groups', metavar='K'
    )
    parser.add_argument('--image-size', type=int, nargs=2, metavar=('H', 'W'))
    parser.add_argument(
        '--variants', nargs='+', choices=VARIANTS, metavar='NAME',
        help=f'out of {", ".join(VARIANTS)}',
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--sweep', choices=AXES)
    what.add_argument(
        '--preset', choices=PRESETS, help='what docs/performance.md shows'
    )
    what.add_argument(
        '--render', nargs='+', type=Path, metavar='FILE.json',
        help='write results of presets into the document instead',
    )  # fmt: skip
    parser.add_argument('--document', type=Path, default=DOCUMENT)
    parser.add_argument(
        '--device', help='cpu by default; a preset measures all there are'
    )
    parser.add_argument('--threads', type=int)
    parser.add_argument('--repeats', type=int)
    parser.add_argument(
        '--thorough',
        action='store_true',
        help='compare with the reference in float64 too, with all queries',
    )
    parser.add_argument(
        '--keep-freed-memory',
        action='store_true',
        help='on a CPU, keep freed memory for the next call',
    )
    parser.add_argument('--out', type=Path, metavar='FILE.json')
    parser.add_argument(
        '--markdown', action='store_true', help='print Markdown'
    )
    return parser


def _cases(
    args: argparse.Namespace,
) -> tuple[list[tuple[str | None, Case]], list[str]]:
    """What to run, with the axis if it is swept; and what cannot be run.

    Raises:
        UsageError: If the command line makes no sense.
    """
    for name in ('batch', 'queries', 'stages', 'threads', 'repeats'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f'--{name} {value}: expected 1 or more')
    _check_device(args.device)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name in SHAPE
        if (value := getattr(args, name)) is not None
    }
    found: list[tuple[str | None, Case]]
    if args.preset:
        if given:
            raise UsageError(
                f'--preset {args.preset} has its own {sorted(given)}'
            )
        found = [*_preset(args)]
    else:
        given = {'part': 'mixing', 'mode': 'forward', **given}
        given.setdefault('variants', SWEPT if args.sweep else _default(given))
        case = Case(**given, device=args.device or 'cpu')
        _check_case(case, args.sweep)
        found = [(None, case)]
        if args.sweep:
            found = [(args.sweep, point) for point in sweep(args.sweep, case)]
    if args.repeats:
        found = [
            (axis, Case(**{**vars(case), 'repeats': args.repeats}))
            for axis, case in found
        ]
    here = torch.cuda.is_available()
    runs = [
        (a, c) for a, c in found if here or not c.device.startswith('cuda')
    ]
    return runs, [c.label for a, c in found if (a, c) not in runs]


def _preset(args: argparse.Namespace) -> list[tuple[str | None, Case]]:
    """The cases of a preset; of one device if it is named."""
    if args.preset == 'sweeps':
        return [*sweeps(args.device or 'cpu')]
    kind = args.device and args.device.split(':')[0]
    return [(None, case) for case in BAR if kind in (None, case.device)]


def _default(given: dict[str, Any]) -> tuple[str, ...]:
    """All variants that run eagerly in the mode."""
    return tuple(
        name
        for name, variant in VARIANTS.items()
        if variant.runner == 'eager'
        and not variant.needs_gpu
        and not (given['mode'] == 'train' and name in FORWARD_ONLY)
        and not (
            given['mode'] == 'forward'
            and variant.model == 'lors'
            and variant.recompute
        )
    )


def _check_device(device: str | None) -> None:
    try:
        kind = torch.device(device or 'cpu').type
    except RuntimeError:
        kind = ''
    if kind not in ('cpu', 'cuda'):
        raise UsageError(f'--device {device}: expected cpu, cuda or cuda:N')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise UsageError(f'--device {device}: torch finds no GPU')


def _check_case(case: Case, axis: str | None) -> None:
    """Refuse variants and sizes that cannot do what is asked."""
    try:
        with torch.device('meta'):
            AdaMixerDecoder(**settings(case, 'lors'))
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None
    if axis and not set(SWEPT) <= set(case.variants):
        raise UsageError(f'--sweep {axis} needs the variants {list(SWEPT)}')
    for name in case.variants:
        variant = VARIANTS[name]
        if case.mode == 'train' and name in FORWARD_ONLY:
            raise UsageError(f'--variants {name}: cannot run --mode train')
        if variant.needs_gpu and case.device == 'cpu':
            raise UsageError(f'--variants {name}: needs --device cuda')
    if len(set(case.variants)) < len(case.variants):
        raise UsageError('--variants: names one twice')


def _measure(
    args: argparse.Namespace,
    cases: Sequence[tuple[str | None, Case]],
    skipped: Sequence[str],
) -> None:
    """Run the cases; print and write what is there after each."""
    table = markdown_table if args.markdown else ascii_table
    print(machine_line(machine()))
    if args.keep_freed_memory:
        keep_freed_memory()
    results = []
    for axis, case in cases:
        result = run_case(case, thorough=args.thorough)
        if axis:
            result['sweep'] = axis
        results.append(result)
        print(f'\n{case.label}\n\n{case_table(result, table)}', flush=True)
        if args.out:
            write_results(args.out, args.preset, results, skipped)
    for axis, text in sweep_tables(results, table):
        print(f'\n{axis}\n\n{text}')
    if args.preset == 'bar':
        print(f'\n{bar_table(results, table)}')
    for label in skipped:
        print(f'not measured, torch finds no GPU: {label}')


if __name__ == '__main__':
    main()
