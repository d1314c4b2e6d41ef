# SPDX-License-Identifier: Apache-2.0
"""Test a detector: python tools/test.py CONFIG CHECKPOINT."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.launch import common_parser, test
from lors_det.errors import UsageError


def main():
    """Parse the command line and test."""
    parser = common_parser('Test a detector.')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the detections to a file'
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the detections into a folder'
    )
    try:
        test(parser.parse_args())
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
