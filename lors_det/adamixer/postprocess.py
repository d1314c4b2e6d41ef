# SPDX-License-Identifier: Apache-2.0
"""From the last stage's predictions to detections."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.structures import InstanceData
from torch import Tensor

from lors_det.adamixer.decoder import StageOutput


def select_topk(
    stage: StageOutput, max_per_img: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best (query, class) pairs: no threshold, no NMS.

    Source: AdaMixer's release, after Sparse R-CNN.

    Args:
        stage: What the last stage predicts for B images with N queries.
        max_per_img: Detections K to keep per image; cut to N x classes.

    Returns:
        (B, K) scores in descending order, (B, K) labels and (B, K, 4) boxes
        x1, y1, x2, y2 in pixels of the resized image.
    """
    scores, labels, query = best_pairs(stage.cls_logits.sigmoid(), max_per_img)
    boxes = stage.bboxes.gather(1, query[..., None].expand(-1, -1, 4))
    return scores, labels, boxes


def best_pairs(
    scores: Tensor, max_per_img: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best (query, class) pairs.

    Args:
        scores: (B, N, num_classes).
        max_per_img: Pairs K to keep per image; cut to N x classes.

    Returns:
        (B, K) scores in descending order, (B, K) labels and (B, K) queries.
    """
    num_classes = scores.shape[-1]
    flat = scores.flatten(1)
    best, index = flat.topk(min(max_per_img, flat.shape[1]), dim=1)
    query = index.div(num_classes, rounding_mode='floor')
    return best, index % num_classes, query


def to_instances(
    scores: Tensor,
    labels: Tensor,
    boxes: Tensor,
    scale_factors: Sequence[Sequence[float]] | None = None,
) -> list[InstanceData]:
    """Pack detections image by image, in original coordinates if asked.

    Args:
        scores: (B, K).
        labels: (B, K).
        boxes: (B, K, 4) in pixels of the resized images.
        scale_factors: (w_scale, h_scale) of every image: resized over
            original size. None leaves the boxes as they are.

    Returns:
        One ``InstanceData`` per image with ``scores``, ``labels`` and
        ``bboxes``.
    """
    if scale_factors is not None:
        factors = boxes.new_tensor([list(factor) for factor in scale_factors])
        boxes = boxes / factors.repeat(1, 2)[:, None]
    return [
        InstanceData(scores=s, labels=c, bboxes=b)
        for s, c, b in zip(scores, labels, boxes, strict=True)
    ]
