# SPDX-License-Identifier: Apache-2.0
"""Convert checkpoints: python tools/convert_checkpoint.py SRC DST."""

import argparse

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description='Convert a checkpoint of the official AdaMixer or LORS '
        "release to this project's names, and print the matching config."
    )
    parser.add_argument('source', metavar='SRC', help='file to read')
    parser.add_argument(
        'target',
        metavar='DST',
        help='file to write: .pth, or .safetensors for that format',
    )
    parser.add_argument(
        '--to-official',
        action='store_true',
        help="from this project's names to those of the release",
    )
    parser.add_argument(
        '--ema',
        action='store_true',
        help='take the averaged weights (EMA) instead of the plain ones',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let SRC run code while it is loaded, as a pickle can',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='write over DST'
    )
    args = parser.parse_args()
    with OneLineErrors():
        from lors_det.convert.command import (  # late: --help needs no torch
            convert_file,
        )

        for line in convert_file(**vars(args)):
            print(line)


if __name__ == '__main__':
    main()
