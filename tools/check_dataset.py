# SPDX-License-Identifier: Apache-2.0
"""Check the data of a config before a run: python tools/check_dataset.py."""

import argparse
import os
import sys

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line, check; exit 1 if a run would be refused."""
    parser = argparse.ArgumentParser(
        description='Read the annotations and every image of a config, and '
        'tell what a run makes of them (docs/data.md). Exit status 1: a run '
        'would be refused.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split', choices=['train', 'val', 'test', 'all'], default='all'
    )
    parser.add_argument(
        '--json', metavar='FILE', help='write the results to a file, too'
    )
    parser.add_argument(
        '--num-workers',
        type=int,
        default=min(8, os.cpu_count() or 1),
        metavar='N',
        help='processes that read images (%(default)s); 0 for none but this',
    )
    with OneLineErrors():
        args = parser.parse_args()
        from lors_det.cli.check_dataset import (
            check,  # late: --help needs no torch
        )

        sys.exit(0 if check(args) else 1)


if __name__ == '__main__':
    main()
