# SPDX-License-Identifier: Apache-2.0
"""Train configs x grid x seeds: python tools/sweep.py SWEEP.yml."""

import argparse
import sys
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.sweep.run import run_sweep
from lors_det.errors import UsageError


def main():
    """Parse the command line and run what is not finished yet."""
    parser = argparse.ArgumentParser(
        description='Train configs x grid x seeds, one after another; started '
        'again, an interrupted sweep goes on.'
    )
    parser.add_argument('sweep', help='YAML file (docs/sweeps.md)')
    parser.add_argument(
        '--work-dir',
        required=True,
        help='folder for the table, the plot, and a folder per run',
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='check everything and print the commands, train nothing',
    )
    parser.add_argument(
        '--keep-going',
        action='store_true',
        help='go on with the next run when one fails',
    )
    try:
        run_sweep(parser.parse_args(), Path(__file__).resolve().parent)
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None
    except KeyboardInterrupt:
        print('interrupted; start it again to go on', file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == '__main__':
    main()
