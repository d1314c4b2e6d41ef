# SPDX-License-Identifier: Apache-2.0
"""Print what matters of a run; its log file has everything."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from lors_det.adamixer import AdaMixer
from lors_det.lors import count_parameters

#: Lines of mmengine and mmdet that help nobody who watches a run.
HIDDEN = re.compile(
    'Saving checkpoint|Evaluating bbox|bbox_mAP_copypaste'
    '|"FileClient" will be|"HardDiskBackend" is the alias'
)
#: What matters of what happens before the first iteration.
SHOWN = re.compile('Load checkpoint from|resumed epoch')
#: COCO's table, which training prints as one line.
TABLE = re.compile('Average Precision')
#: Losses of single stages, as in ``  s0.loss_cls: 0.4819``.
STAGE_LOSS = re.compile(r'  [a-z]+\d+\.\w+: \S+')


class ConsoleRunner(Runner):
    """mmengine's runner, whose console shows what matters.

    It is silent until the first iteration: what is wrong with the model, the
    data or the checkpoint is then all that one sees. It begins with what is
    trained on what.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build mmengine's logger, with a console that waits."""
        logger = super().build_logger(*args, **kwargs)
        self.console = logger.handlers[0]
        self.console.addFilter(self._is_shown)
        self.console.setFormatter(_Plain())
        self.waiting: list[logging.LogRecord] = []
        self.has_begun = self.in_training = False
        return logger

    def _is_shown(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if HIDDEN.search(text):
            return False
        if self.has_begun:
            return not (self.in_training and TABLE.search(text))
        if record.levelno >= logging.WARNING or SHOWN.search(text):
            self.waiting.append(record)
        return False

    def begin(self, in_training: bool) -> None:
        """Print what the run is and what waits, and from now on print at once.

        Args:
            in_training: Whether it trains, or tests.
        """
        self.has_begun, self.in_training = True, in_training
        for line in _describe(self, in_training):
            self.logger.info(line)
        for record in self.waiting:
            self.console.emit(record)  # has been filtered already


class _Plain(logging.Formatter):
    """Writes the message alone, without the losses of single stages."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        text = STAGE_LOSS.sub('', super().format(record))
        if record.levelno >= logging.WARNING:
            text = f'{record.levelname.lower()}: {text}'
        return text


def _describe(runner: Runner, in_training: bool) -> Iterator[str]:
    """Say what is trained or tested on what, in a line each."""
    loops = {'test': runner.test_loop}
    if in_training:
        loops = {'train': runner.train_loop, 'val': runner.val_loop}
    for name, loop in loops.items():
        if loop is not None:
            yield f'{name:6} {_describe_data(loop.dataloader.dataset)}'
    yield f'model  {_describe_model(runner.model)}'
    yield f'folder {runner.work_dir}'


def _describe_data(dataset: Any) -> str:
    """Count images, boxes and classes."""
    parts = [f'{len(dataset):,} images']
    if hasattr(dataset, 'num_boxes'):
        parts.append(f'{dataset.num_boxes:,} boxes')
    classes = getattr(dataset, 'metainfo', {}).get('classes', ())
    names = f' ({", ".join(classes)})' if len(classes) <= 10 else ''
    return ', '.join([*parts, f'{len(classes)} classes{names}'])


def _describe_model(model: nn.Module) -> str:
    """Count parameters; in a decoder on stacks, by their kind."""
    model = getattr(model, 'module', model)
    total = count_parameters(model).total / 1e6
    text = f'{type(model).__name__}, {total:.2f} M parameters'
    if not isinstance(model, AdaMixer):
        return text
    count = count_parameters(model.decoder)
    return (
        f'{text}; decoder {count.total / 1e6:.2f} M, of these '
        f'{count.shared / 1e6:.2f} M shared by its stages and '
        f'{count.private / 1e6:.2f} M low-rank; with unrelated stages it '
        f'would have {count.dense_total / 1e6:.2f} M'
    )
