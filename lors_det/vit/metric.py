# SPDX-License-Identifier: Apache-2.0
"""Top-1 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class Top1Accuracy(BaseMetric):
    """Top-1 accuracy: share of images classified correctly, in percent.

    Args:
        collect_device: ``cpu`` or ``gpu``, where the results of all
            processes are collected.
        prefix: Prefix of ``top1`` in logs.
    """

    default_prefix = 'accuracy'

    def process(
        self, data_batch: Any, data_samples: Sequence[dict[str, Any]]
    ) -> None:
        """Compare a batch.

        Args:
            data_batch: Unused.
            data_samples: What `ViTClassifier.predict` returns.
        """
        self.results += [
            int(sample['pred_label']) == int(sample['gt_label'])
            for sample in data_samples
        ]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        """Average over all images.

        Args:
            results: Whether each image was classified correctly.

        Returns:
            ``top1`` in percent.
        """
        return {'top1': 100 * sum(results) / len(results)}
