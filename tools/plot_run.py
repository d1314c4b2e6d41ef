# SPDX-License-Identifier: Apache-2.0
"""Plot loss, learning rate and AP of runs: python tools/plot_run.py DIR ..."""

import argparse
from pathlib import Path

from lors_det.cli.boundary import OneLineErrors


def main():
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description='Plot loss, learning rate and AP of runs from their logs.'
    )
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('run.svg'),
        metavar='FILE',
        help='picture to write, e.g. a .svg or .png (%(default)s)',
    )
    args = parser.parse_args()
    with OneLineErrors():
        from lors_det.analysis.run_log import plot_runs  # late: takes seconds

        plot_runs(args.work_dirs, args.out)
    print(args.out)


if __name__ == '__main__':
    main()
