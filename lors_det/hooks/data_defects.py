# SPDX-License-Identifier: Apache-2.0
"""Reports of broken images during a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmdet.registry import HOOKS
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner

from lors_det.datasets.coco import CheckedCocoDataset
from lors_det.datasets.defects import Defects


@HOOKS.register_module()
class DefectsHook(Hook):
    """Report broken images: the first at once, all at the end of an epoch.

    The log gets a line for each kind of defect, with the number of images and
    the first ids, and another one only when there are more.
    """

    # Before the hook that draws pictures.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._reported: dict[tuple[str, str], int] = {}

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        """Report the first image with a defect that this process loads."""
        for dataset in _checked_datasets(runner.train_dataloader.dataset):
            if dataset.image_defect_codes.any():
                name, found = dataset.ann_file, dataset.image_defects()
                if not any((name, kind) in self._reported for kind in found):
                    self._report(name, found)

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Report the defects found by all processes, in every mode."""
        loader = getattr(runner, f'{mode}_dataloader')
        for dataset in _checked_datasets(loader.dataset):
            defects = dataset.image_defect_codes.clone()
            all_reduce(defects, 'max')  # nothing to do in a single process
            dataset.image_defect_codes.copy_(defects)
            self._report(dataset.ann_file, dataset.image_defects())

    def after_test_iter(self, runner: Runner, outputs: Any, **_: Any) -> None:
        """Remove unreadable images after the metric, so none is drawn."""
        if isinstance(outputs, list):
            outputs[:] = [s for s in outputs if 'unreadable' not in s]

    def _report(self, name: str, defects: Defects) -> None:
        more = Defects()
        for kind, found in defects.items():
            if len(found) > self._reported.get((name, kind), 0):
                more[kind] = found
                self._reported[name, kind] = len(found)
        more.log(name)  # from the main process only


def _checked_datasets(dataset: Any) -> Iterator[CheckedCocoDataset]:
    """Yield our data sets, also those inside the wrappers of others."""
    if isinstance(dataset, CheckedCocoDataset):
        yield dataset
    elif hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from _checked_datasets(inner)
    elif hasattr(dataset, 'dataset'):
        yield from _checked_datasets(dataset.dataset)
