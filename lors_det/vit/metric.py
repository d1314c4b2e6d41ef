# SPDX-License-Identifier: Apache-2.0
"""How often the most likely class is the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class Top1Accuracy(BaseMetric):
    """Share of images whose most likely class is theirs, in percent.

    Args:
        collect_device: Where results of several processes are collected,
            ``cpu`` or ``gpu``.
        prefix: Before the name ``top1`` in logs.
    """

    default_prefix = 'accuracy'

    def process(
        self, data_batch: Any, data_samples: Sequence[dict[str, Any]]
    ) -> None:
        """Compare a batch.

        Args:
            data_batch: Not read.
            data_samples: What `ViTClassifier.predict` returns.
        """
        self.results += [
            int(sample['pred_label']) == int(sample['gt_label'])
            for sample in data_samples
        ]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        """Average over all images.

        Args:
            results: Whether each image was classified rightly.

        Returns:
            ``top1`` in percent.
        """
        return {'top1': 100 * sum(results) / len(results)}
