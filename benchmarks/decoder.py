# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the decoder: python -m benchmarks.decoder [--help]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from benchmarks.cases import COMPARED, DTYPES, MODES, PARTS, VARIANTS, Case
from benchmarks.checked import WrongResult, run_case
from benchmarks.document import machine, render, tables, write_results
from lors_det.adamixer import AdaMixerDecoder
from lors_det.errors import UsageError
from lors_det.predict import check_device

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'performance.md'
FIELDS = {field.name for field in fields(Case)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write.

    Args:
        arguments: Those of the process if None.
    """
    args = _parser().parse_args(arguments)
    try:
        if args.render:
            render(args.render, args.document)
            return
        cases = _cases(args)
        if args.threads:
            torch.set_num_threads(args.threads)
        print(machine())
        results = []
        for case in cases:
            results.append(run_case(case))
            print(f'\n{tables(results[-1:])}', flush=True)
            if args.out:
                write_results(args.out, results)
    except (UsageError, WrongResult) as error:
        raise SystemExit(f'error: {error}') from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.decoder',
        description='Measure variants of the decoder in alternating rounds; '
        'each is compared with docs/method.py in float64 first. Ratios are '
        'against the first variant.',
    )
    parser.add_argument('--part', choices=PARTS, help='mixing by default')
    parser.add_argument('--mode', choices=MODES, help='forward by default')
    parser.add_argument(
        '--variants', nargs='+', choices=VARIANTS, metavar='NAME',
        help=f'out of {", ".join(VARIANTS)}; by default dense, reference and '
        'lors',
    )  # fmt: skip
    parser.add_argument('--dtype', choices=DTYPES)
    for name in ('batch', 'queries', 'stages', 'rank'):
        parser.add_argument(f'--{name}', type=int)
    parser.add_argument(
        '--param-groups', type=int, dest='num_param_groups', metavar='K'
    )
    parser.add_argument('--image-size', type=int, nargs=2, metavar=('H', 'W'))
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--compare',
        action='store_true',
        help='measure what the document shows',
    )
    what.add_argument(
        '--render',
        nargs='+',
        type=Path,
        metavar='FILE.json',
        help='write results of --compare into the document instead',
    )
    parser.add_argument('--document', type=Path, default=DOCUMENT)
    parser.add_argument('--device', help='cpu by default')
    parser.add_argument('--threads', type=int)
    parser.add_argument('--rounds', type=int)
    parser.add_argument('--out', type=Path, metavar='FILE.json')
    return parser


def _cases(args: argparse.Namespace) -> list[Case]:
    """List the cases to run.

    Raises:
        UsageError: If the command line makes no sense.
    """
    for name in ('batch', 'queries', 'stages', 'threads', 'rounds'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f'--{name} {value}: expected 1 or more')
    if args.device:
        check_device(args.device)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if name in FIELDS and value is not None
    }
    if args.compare:
        own = sorted(given.keys() - {'rounds'})
        if own:
            raise UsageError(f'--compare: has its own {own}')
        return [replace(case, **given) for case in COMPARED]
    case = Case('mixing', 'forward', ('dense', 'reference', 'lors'))
    case = replace(case, **given)
    _check(case)
    return [case]


def _check(case: Case) -> None:
    """Refuse variants and sizes that cannot do what is asked."""
    for name in case.variants:
        model, way = VARIANTS[name]
        if case.mode == 'train' and model.startswith('folded'):
            raise UsageError(f'--variants {name}: cannot run --mode train')
        if way == 'graphed' and case.device == 'cpu':
            raise UsageError(f'--variants {name}: needs --device cuda')
        try:
            with torch.device('meta'):
                AdaMixerDecoder(**case.settings(model))
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from None
    if len(set(case.variants)) < len(case.variants):
        raise UsageError('--variants: names one twice')


if __name__ == '__main__':
    main()
