# SPDX-License-Identifier: Apache-2.0
"""Train a detector: python tools/train.py CONFIG."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.launch import common_parser, train
from lors_det.errors import UsageError


def main():
    """Parse the command line and train."""
    parser = common_parser('Train a detector.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without one, from the latest in the '
        'work directory',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='float16',
        choices=['float16', 'bfloat16'],
        help='automatic mixed precision, float16 if no type is named',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the number of images per step',
    )
    try:
        train(parser.parse_args())
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
