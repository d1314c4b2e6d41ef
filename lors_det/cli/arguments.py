# SPDX-License-Identifier: Apache-2.0
"""Arguments of tools/train.py and tools/test.py. Imports no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from lors_det.errors import UsageError

TYPES = ['float32', 'float16', 'bfloat16']


def train_parser() -> argparse.ArgumentParser:
    """Return the parser of tools/train.py."""
    parser = _common_parser('Train a detector.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; if none is named, from the latest '
        'in the work directory',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='best',
        choices=['float16', 'bfloat16', 'best'],
        help='automatic mixed precision; if no type is named the best, which '
        'is float16 on a GPU without bfloat16, else bfloat16',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the number of images per step',
    )
    return parser


def test_parser() -> argparse.ArgumentParser:
    """Return the parser of tools/test.py."""
    parser = _common_parser('Test a detector.')
    parser.add_argument(
        'checkpoint', help='checkpoint, or a file that tools/export.py wrote'
    )
    parser.add_argument(
        '--out',
        metavar='FILE',
        help="write the detections to a file: .pkl, or .bbox.json for COCO's "
        'results',
    )
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the detections into a folder'
    )
    parser.add_argument(
        '--dtype',
        choices=TYPES,
        default='float32',
        help='type to compute in (%(default)s)',
    )
    return parser


def _common_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what training and testing share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (work_dirs/CONFIG if not given)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='write over what an earlier run left in the output folders',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        default={},
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. '
        'model.decoder.num_stages=3 or key="[a,b]"',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let checkpoints run code while they are loaded, as a pickle can',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument(
        '--traceback',
        action='store_true',
        help='print the traceback of an error',
    )
    return parser


class _Options(argparse.Action):
    """Collects ``KEY=VALUE``; unlike mmengine's, it keeps spaces."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add options to those that are there already."""
        options = dict(getattr(namespace, self.dest))
        for item in values or ():
            key, equals, value = item.partition('=')
            if not equals or not key:
                raise UsageError(f'--cfg-options {item}: expected KEY=VALUE')
            try:
                options[key] = parse_value(value)
            except AssertionError as error:  # a bracket is not closed
                raise UsageError(f'--cfg-options {item}: {error}') from None
        setattr(namespace, self.dest, options)


def parse_value(text: str) -> Any:
    """Read a value as mmengine does, but keep the spaces inside of text.

    Args:
        text: ``[a,b]`` and ``a,b`` are lists, ``(a,b)`` is a tuple, what
            looks like a number, a boolean or None is one, and the rest text.

    Returns:
        The value.
    """
    from mmengine.config import DictAction  # late: --help needs no torch

    def restore(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(restore, value))
        return value.replace('\0', ' ') if isinstance(value, str) else value

    around = r'(?<=[,[(]) +| +(?=[],)])'
    text = re.sub(around, '', text.strip()).replace(' ', '\0')
    return restore(DictAction._parse_iterable(text))
