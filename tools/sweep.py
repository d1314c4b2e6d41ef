# SPDX-License-Identifier: Apache-2.0
"""Train configs x values x seeds: python tools/sweep.py SWEEP.yml."""

import argparse
import signal

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and train what is not finished yet."""
    parser = argparse.ArgumentParser(
        description='Train configs x values x seeds, one row per run; started '
        'again, an interrupted sweep is resumed.'
    )
    parser.add_argument(
        'sweep',
        help='YAML file (docs/sweeps.md); or the CSV file of a sweep, to '
        'write its table and plot again',
    )
    parser.add_argument(
        '--work-dir',
        help='folder for everything (work_dirs/SWEEP if not given)',
    )
    parser.add_argument(
        '--results',
        metavar='FILE.csv',
        help='the rows (WORK_DIR/results.csv if not given)',
    )
    parser.add_argument(
        '--document',
        metavar='FILE.md',
        help='with a CSV file: also write the table between its marks there',
    )
    parser.add_argument(
        '--parallel',
        type=int,
        default=1,
        metavar='N',
        help='train N runs at a time, with one thread each if N is above 1',
    )
    parser.add_argument(
        '--keep-going',
        action='store_true',
        help='when a run fails, train the others all the same',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='check everything and print the commands; train nothing',
    )
    with OneLineErrors(how_to_resume='the same command resumes the sweep'):
        args = parser.parse_args()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        from lors_det.cli.sweep import run_sweep  # late: --help needs no torch

        run_sweep(args)


if __name__ == '__main__':
    main()
