# SPDX-License-Identifier: Apache-2.0
"""Telling of images that turn out to be broken while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from lors_det.datasets.coco import CheckedCocoDataset, log_defects
from lors_det.datasets.defects import Defects


@HOOKS.register_module()
class DefectsHook(Hook):
    """Report broken images: the first at once, all at the end of an epoch.

    A line for each kind, with the number of images and the first ids, and
    only if there are more than at the last line.
    """

    # Before pictures are drawn.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._reported: dict[tuple[str, str], int] = {}

    def after_train_iter(
        self, runner: Runner, *args: Any, **kwargs: Any
    ) -> None:
        """Report the first image of a kind that this process meets.

        Args:
            runner: The runner.
            args: Not read.
            kwargs: Not read.
        """
        for dataset in _checked_datasets(runner.train_dataloader.dataset):
            if dataset.image_defect_codes.any():
                name, found = dataset.ann_file, dataset.image_defects()
                if not any((name, kind) in self._reported for kind in found):
                    self._report(name, found)

    def after_train_epoch(self, runner: Runner) -> None:
        """Report what all processes met.

        Args:
            runner: The runner.
        """
        self._report_all(runner.train_dataloader.dataset)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Report what all processes met.

        Args:
            runner: The runner.
            metrics: Not read.
        """
        self._report_all(runner.val_dataloader.dataset)

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Report what all processes met.

        Args:
            runner: The runner.
            metrics: Not read.
        """
        self._report_all(runner.test_dataloader.dataset)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Take from the hooks that follow what there is no picture of.

        Args:
            runner: Not read.
            batch_idx: Not read.
            data_batch: Not read.
            outputs: Samples of the batch, which the metric has by now.
        """
        if isinstance(outputs, list):
            outputs[:] = [s for s in outputs if 'unreadable' not in s]

    def _report_all(self, dataset: Any) -> None:
        for each in _checked_datasets(dataset):
            codes = each.image_defect_codes.clone()
            all_reduce(codes, 'max')  # no-op in a single process
            each.image_defect_codes.copy_(codes)
            self._report(each.ann_file, each.image_defects())

    def _report(self, name: str, defects: Defects) -> None:
        news = Defects()
        for kind, found in defects.items():
            if len(found) > self._reported.get((name, kind), 0):
                news[kind] = found
                self._reported[name, kind] = len(found)
        log_defects(news, name)  # the log takes it from the main process only


def _checked_datasets(dataset: Any) -> Iterator[CheckedCocoDataset]:
    """Ours, and those of ours that others wrap."""
    if isinstance(dataset, CheckedCocoDataset):
        yield dataset
    elif hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from _checked_datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from _checked_datasets(dataset.dataset)
