# SPDX-License-Identifier: Apache-2.0
"""Say what models cost: python tools/model_report.py CONFIG [CONFIG ...]."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors
from lors_det.files import load_config


def main():
    """Parse the command line, print and write the reports."""
    parser = argparse.ArgumentParser(
        description='Parameters, multiply-adds and bytes of models, by part; '
        'the first config is what the others are compared with.'
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        '--json', action='store_true', help='print plain numbers'
    )
    output.add_argument(
        '--markdown', action='store_true', help='print Markdown'
    )
    parser.add_argument(
        '--plot',
        metavar='DIR',
        type=Path,
        help='draw the parameters by part into a folder',
    )
    args = parser.parse_args()
    with OneLineErrors():
        # Late: --help needs no torch.
        from lors_det.analysis import tables
        from lors_det.analysis.costs import report
        from lors_det.analysis.plots import plot_parts

    reports = {}
    for path in args.configs:
        with OneLineErrors() as errors:
            errors.cfg = load_config(path)
            reports[path] = report(errors.cfg.model)
    if args.json:
        data = {name: asdict(found) for name, found in reports.items()}
        print(json.dumps(data, indent=2))
    else:
        table = tables.ascii_table
        if args.markdown:
            table = tables.markdown_table
        print(tables.format_reports(reports, table))
    if args.plot:
        plot_parts(reports, args.plot)


if __name__ == '__main__':
    main()
