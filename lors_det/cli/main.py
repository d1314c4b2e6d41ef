# SPDX-License-Identifier: Apache-2.0
"""The command ``lors-det``: every tool by a short name. Imports no torch."""

from __future__ import annotations

import runpy
import sys

from lors_det.cli.boundary import OneLineErrors, suggest
from lors_det.errors import UsageError
from lors_det.files import MIM
from lors_det.version import __version__

#: Command: the file in tools/ that it runs, and what that does.
COMMANDS = {
    'configs': ('configs', 'list the configs that come with lors_det'),
    'init': ('init', 'copy one of them, to start your own'),
    'check': ('check_dataset', 'check the data of a config'),
    'train': ('train', 'train a detector'),
    'test': ('test', 'measure the AP of a checkpoint'),
    'predict': ('predict', 'detect on images, videos and cameras'),
    'export': ('export', 'write a detector as ONNX, OpenVINO or .pt2'),
    'analyse': ('analyse', 'write a report about the errors of detections'),
    'explain': ('explain', 'draw how a detection came about'),
    'plot': ('plot_run', 'plot loss and AP of runs'),
    'report': ('model_report', 'count parameters and multiply-adds'),
    'benchmark': ('benchmark', 'time detectors'),
    'sweep': ('sweep', 'train configs x values x seeds'),
    'convert': ('convert_checkpoint', 'convert checkpoints of the releases'),
    'uptrain': ('uptrain', 'factorise a dense checkpoint into LORS'),
    'mmdet': ('mmdet_tool', 'run a tool that mmdet packages'),
}


def main() -> None:
    """Run the tool that the first argument names, as ``lors-det NAME``.

    Raises:
        SystemExit: If there is no such command, or by the tool.
    """
    name, *arguments = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print('usage: lors-det COMMAND [ARGUMENTS]; lors-det COMMAND --help\n')
        for command, (_, what) in COMMANDS.items():
            print(f'  {command:10} {what}')
        return
    if name == '--version':
        print(f'lors_det {__version__}')
        return
    with OneLineErrors():
        if name not in COMMANDS:
            raise UsageError(f'no command {name!r}{suggest(name, COMMANDS)}')
    tool = runpy.run_path(str(MIM / 'tools' / f'{COMMANDS[name][0]}.py'))
    sys.argv = [f'lors-det {name}', *arguments]
    tool['main']()
