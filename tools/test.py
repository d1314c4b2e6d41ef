# SPDX-License-Identifier: Apache-2.0
"""Test a detector: python tools/test.py CONFIG CHECKPOINT."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import announce, test_parser
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and test."""
    with OneLineErrors() as errors:
        args = test_parser().parse_args()
        errors.show_traceback = args.traceback
        announce(args)
        from lors_det.cli.test import test  # late: --help needs no torch

        test(args, errors)


if __name__ == '__main__':
    main()
