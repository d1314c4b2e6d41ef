# SPDX-License-Identifier: Apache-2.0
"""Train a detector: python tools/train.py CONFIG."""

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import train_parser
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.checks import configure


def main():
    """Parse the command line and train."""
    with OneLineErrors() as errors:
        args = train_parser().parse_args()
        errors.show_traceback = args.traceback
        cfg = configure(args, errors, ('train', 'val'))
        # Late: it takes seconds, which no mistake so far has to wait for.
        from lors_det.cli.train import train

        train(cfg, args, errors)


if __name__ == '__main__':
    main()
