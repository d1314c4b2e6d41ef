# SPDX-License-Identifier: Apache-2.0
"""Look at detections: python tools/analyse.py CONFIG RESULTS [RESULTS]."""

import argparse
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and write a report or a sheet."""
    parser = argparse.ArgumentParser(
        description='Write a page about the detections of one model, or two '
        'side by side: AP with intervals, curves, errors by kind, '
        'calibration, confusions, the worst images (docs/analysis.md).'
    )
    parser.add_argument('config', metavar='CONFIG', help='for its test split')
    parser.add_argument(
        'results',
        nargs='+',
        metavar='RESULTS',
        help='detections, from tools/test.py --out RESULTS.bbox.json',
    )
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('report.html'),
        metavar='FILE',
        help='page to write (%(default)s)',
    )
    parser.add_argument(
        '--sheet',
        type=Path,
        metavar='FILE.png',
        help='instead of the page, draw truth and detections of six images',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='score from which on detections are drawn and count in the '
        'confusion matrix (%(default)s)',
    )
    parser.add_argument(
        '--resamples',
        type=int,
        default=200,
        metavar='N',
        help='of the images, for the intervals (%(default)s)',
    )
    args = parser.parse_args()
    with OneLineErrors():
        from lors_det.cli.analyse import analyse  # late: --help needs no torch

        print(analyse(args))


if __name__ == '__main__':
    main()
