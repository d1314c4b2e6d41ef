# SPDX-License-Identifier: Apache-2.0
"""Run a tool of mmdet: python tools/mmdet_tool.py analysis_tools/get_flops."""

import argparse
import runpy
import sys
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors, suggest
from lors_det.errors import UsageError


def main():
    """Parse the command line and run the tool, which parses the rest."""
    parser = argparse.ArgumentParser(
        description='Run a tool that mmdet packages. By itself, most of them '
        'need a compiled mmcv.'
    )
    parser.add_argument(
        'name', metavar='TOOL', help='such as analysis_tools/get_flops'
    )
    parser.add_argument(
        'arguments', nargs=argparse.REMAINDER, help='as the tool says'
    )
    args = parser.parse_args()
    with OneLineErrors():
        import mmdet

        folder = Path(mmdet.__file__).parent / '.mim/tools'
        files = {
            str(path.relative_to(folder).with_suffix('')): path
            for path in folder.rglob('*.py')
        }
        if args.name not in files:
            raise UsageError(
                f'mmdet {mmdet.__version__} has no tool {args.name!r}'
                f'{suggest(args.name, files)}'
            )
    sys.argv = [str(files[args.name]), *args.arguments]
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
