# SPDX-License-Identifier: Apache-2.0
"""Behind tools/export.py: write a file, and compare it with torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from lors_det.cli.boundary import OneLineErrors
from lors_det.deploy.export import Summary, export_detector
from lors_det.deploy.formats import FORMATS
from lors_det.deploy.parity import Reference
from lors_det.errors import UsageError
from lors_det.files import check_file, check_output, load_config
from lors_det.predict import Predictor


def export(args: argparse.Namespace, errors: OneLineErrors) -> None:
    """Export as the command line says.

    Args:
        args: Parsed arguments of tools/export.py.
        errors: Learns what the config is.

    Raises:
        UsageError: If an argument is wrong, or the file does not find what
            the detector finds.
    """
    ending = FORMATS[args.format][0]
    stem = Path(args.config).stem
    out = Path(args.out or Path('work_dirs', stem, stem + ending))
    if not args.overwrite:
        check_output(str(out), '--out')
    check_file(args.checkpoint, 'CHECKPOINT')
    cfg = errors.cfg = load_config(args.config)
    predictor = Predictor(cfg, args.checkpoint, 'cpu', args.trust)
    reference = Reference(predictor) if args.check else None
    print(f'{args.format}, {args.dtype}: tracing and writing', flush=True)
    errors.first_batch_done = True  # what fails now is no mistake of a user
    summary = export_detector(
        predictor, out, args.format, args.dtype, args.fold,
        args.with_postprocess,
    )  # fmt: skip
    print(_describe(summary))
    if reference is None:
        return
    # What was just written can be trusted.
    exported = Predictor(cfg, out, 'cpu', trust=True)
    failures = 0
    for finding in reference.check(exported):
        failures += not finding.passed
        end = '' if finding.passed else ' -- too far'
        print(f'{finding.what}: {finding.text}{end}', flush=True)
    if failures:
        raise UsageError(
            f'--check: {out} does not find what the detector finds in torch: '
            f'{failures} comparisons failed'
        )


def _describe(summary: Summary) -> str:
    """Say what was written, in three lines."""
    size = f'{summary.size / 1e6:.1f} MB'
    if summary.size != summary.other_size:
        kinds = 'summed up in the file', 'shared once and low-rank'
        here, there = kinds if summary.folded else kinds[::-1]
        other = f'{summary.other_size / 1e6:.1f} MB'
        size += f', weights of the stages {here}; {there} {other}'
    return (
        f'{summary.path}: {summary.nodes} nodes\n'
        f'  inputs {", ".join(summary.inputs)}; '
        f'outputs {", ".join(summary.outputs)}; '
        'batch, height and width are free\n'
        f'  {size}'
    )
