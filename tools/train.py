# SPDX-License-Identifier: Apache-2.0
"""Train a detector: python tools/train.py CONFIG."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import announce, train_parser
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and train."""
    with OneLineErrors() as errors:
        args = train_parser().parse_args()
        errors.show_traceback = args.traceback
        announce(args)
        from lors_det.cli.train import train  # late: --help needs no torch

        train(args, errors)


if __name__ == '__main__':
    main()
