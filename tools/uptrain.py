# SPDX-License-Identifier: Apache-2.0
"""Dense checkpoint to LORS: python tools/uptrain.py DENSE.pth CONFIG."""

import argparse

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and factorise."""
    parser = argparse.ArgumentParser(
        description='Factorise a trained dense AdaMixer into a shared part '
        'and low-rank residuals, and write the checkpoint and the config that '
        'fine-tuning starts from (docs/lors_library.md, "From a dense '
        'checkpoint").'
    )
    parser.add_argument(
        'dense', metavar='DENSE', help='checkpoint of the dense counterpart'
    )
    parser.add_argument(
        'config',
        metavar='CONFIG',
        help='config of LORS; its stacks say what is factorised',
    )
    ranks = parser.add_mutually_exclusive_group()
    ranks.add_argument(
        '--budget',
        type=int,
        metavar='PARAMS',
        help="parameters that the decoder may have (those of CONFIG's)",
    )
    ranks.add_argument(
        '--given',
        action='store_true',
        help='keep the ranks of CONFIG instead of allocating them',
    )
    parser.add_argument(
        '--images',
        type=int,
        default=64,
        metavar='N',
        help='training images on which the error is measured (%(default)s); '
        '0 for the error of the weights themselves',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder to write to (work_dirs/CONFIG/lors if not given)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='write over files in DIR'
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let DENSE run code while it is loaded, as a pickle can',
    )
    with OneLineErrors() as errors:
        args = parser.parse_args()
        from lors_det.cli.uptrain import uptrain  # late: --help needs no torch

        uptrain(args, errors)


if __name__ == '__main__':
    main()
