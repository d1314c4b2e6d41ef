# SPDX-License-Identifier: Apache-2.0
"""Copy a config, to start your own: python tools/init.py NAME DIR."""

import argparse
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.configs import init


def main():
    """Parse the command line and copy."""
    parser = argparse.ArgumentParser(
        description='Copy a config with all its bases into one file, to '
        'change and to train.'
    )
    parser.add_argument(
        'name', metavar='NAME', help='as `lors-det configs` lists them'
    )
    parser.add_argument(
        'folder', metavar='DIR', type=Path, help='folder to write to'
    )
    parser.add_argument(
        '--root',
        metavar='DIR',
        type=Path,
        help='folder in which data/ and demo/ lie, such as a clone of the '
        'repository; without it, the one in which a run is started',
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='write over a file in DIR'
    )
    with OneLineErrors():
        path = init(**vars(parser.parse_args()))
        print(f'written: {path}; lors-det train {path}')


if __name__ == '__main__':
    main()
