# SPDX-License-Identifier: Apache-2.0
"""Check the data of a config before a run: python tools/check_dataset.py."""

import sys

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.check_dataset import check, parser


def main():
    """Parse the command line, check; exit 1 if a run would be refused."""
    with OneLineErrors():
        sys.exit(0 if check(parser().parse_args()) else 1)


if __name__ == '__main__':
    main()
