# SPDX-License-Identifier: Apache-2.0
"""Test a detector: python tools/test.py CONFIG CHECKPOINT."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import test_parser
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.checks import configure
from lors_det.files import check_file


def main():
    """Parse the command line and test."""
    with OneLineErrors() as errors:
        args = test_parser().parse_args()
        errors.show_traceback = args.traceback
        errors.loop = 'test'
        check_file(args.checkpoint, 'CHECKPOINT')
        cfg = configure(args, errors, ('test',))
        # Late: it takes seconds, which no mistake so far has to wait for.
        from lors_det.cli.test import test

        test(cfg, args, errors)


if __name__ == '__main__':
    main()
