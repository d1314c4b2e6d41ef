# SPDX-License-Identifier: Apache-2.0
"""Draw how a detection came about: python tools/explain.py --help."""

import argparse
from pathlib import Path

from lors_det.cli.boundary import OneLineErrors
from lors_det.errors import UsageError


def main():
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description='Draw what the stages of a trained AdaMixer did to a '
        'detection; for a folder, to all detections in its images; with '
        '--weights, what the stages have in common.'
    )
    parser.add_argument('config', metavar='CONFIG')
    parser.add_argument('checkpoint', metavar='CHECKPOINT')
    parser.add_argument(
        'image', nargs='?', type=Path, metavar='IMAGE', help='image or folder'
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        '--detection',
        type=int,
        metavar='N',
        help='which detection, 0 has the highest score (the default)',
    )
    chosen.add_argument(
        '--query', type=int, metavar='N', help='which query, detected or not'
    )
    parser.add_argument(
        '--gif', action='store_true', help='also write an animation'
    )
    parser.add_argument(
        '--min-score',
        type=float,
        default=0.3,
        metavar='S',
        help='detections of a folder that count (%(default)s)',
    )
    parser.add_argument(
        '--weights',
        action='store_true',
        help='plot shared and private parts of the weights; for those that '
        'are generated, IMAGE gives the queries',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('explain'),
        metavar='DIR',
        help='folder to write to (%(default)s)',
    )
    args = parser.parse_args()
    with OneLineErrors() as errors:
        if args.image is None and not args.weights:
            raise UsageError('IMAGE: expected one, or --weights')
        from lors_det.cli.explain import explain  # late: --help needs no torch

        for file in explain(args, errors):
            print(file)


if __name__ == '__main__':
    main()
