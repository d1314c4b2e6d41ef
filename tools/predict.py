# SPDX-License-Identifier: Apache-2.0
"""Detect: python tools/predict.py CONFIG CHECKPOINT INPUT..."""

import argparse

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import TYPES
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and detect."""
    parser = argparse.ArgumentParser(
        description='Detect on images, folders, globs, videos and cameras, '
        "and write pictures or MP4, COCO's JSON and CSV (docs/predict.md)."
    )
    parser.add_argument('config', metavar='CONFIG', help='config file')
    parser.add_argument(
        'checkpoint',
        metavar='CHECKPOINT',
        help='checkpoint, or a file that tools/export.py wrote',
    )
    parser.add_argument(
        'inputs',
        metavar='INPUT',
        nargs='+',
        help='image, video, folder, glob, or number of a camera',
    )
    parser.add_argument(
        '--score',
        type=float,
        default=0.3,
        metavar='S',
        help='the lowest score that is kept (%(default)s)',
    )
    parser.add_argument(
        '--classes',
        metavar='A,B',
        help='classes that are kept (all if not given)',
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        metavar='N',
        help='images that run together (%(default)s)',
    )
    parser.add_argument(
        '--device',
        help='cpu, cuda:0, ... (the best that is there if not given)',
    )
    parser.add_argument(
        '--dtype',
        choices=TYPES,
        default='float32',
        help='type to compute in (%(default)s)',
    )
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder to write to (work_dirs/CONFIG/predictions if not given)',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='write over files in DIR'
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let the checkpoint run code while it is loaded, as a pickle can',
    )
    with OneLineErrors() as errors:
        args = parser.parse_args()
        from lors_det.cli.predict import predict  # late: --help needs no torch

        predict(args, errors)


if __name__ == '__main__':
    main()
