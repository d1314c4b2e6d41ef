# SPDX-License-Identifier: Apache-2.0
"""Greedy and soft non-maximum suppression of axis-aligned boxes."""

import torch
from torch import Tensor

from lors_det.compat.ops.compute import working_dtype


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int
) -> Tensor:
    """Return the boxes kept by greedy non-maximum suppression.

    Args:
        boxes: ``(N, 4)`` as ``(x1, y1, x2, y2)``, in pixels.
        scores: ``(N,)``.
        iou_threshold: A box whose IoU with a kept box of higher score is
            above this is dropped.
        offset: 0 or 1, in pixels; a box is ``x2 - x1 + offset`` wide.

    Returns:
        ``(K,)`` int64 indices into ``boxes``, by descending score.
    """
    from torchvision.ops import nms as torchvision_nms

    dtype = working_dtype(boxes, scores)
    boxes = _add_offset(boxes.to(dtype), offset)
    # The compiled op compares in the precision of the boxes. Unrounded, a
    # threshold of 0.6 lies below the float32 IoU of exactly 3 / 5.
    threshold = torch.tensor(iou_threshold, dtype=dtype, device='cpu').item()
    kept: Tensor = torchvision_nms(boxes, scores.to(dtype), threshold)
    return kept


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Return the boxes left by soft non-maximum suppression.

    Takes the box of highest score, lowers the scores of the boxes left by
    their IoU with it, drops those now below ``min_score``, and repeats. Of
    equal scores the lower index comes first.

    Args:
        boxes: ``(N, 4)`` as ``(x1, y1, x2, y2)``, in pixels.
        scores: ``(N,)``.
        dets: ``(N, 5)`` buffer; its first ``K`` rows are overwritten with the
            boxes taken and their scores when taken.
        iou_threshold: The IoU from which methods 0 and 1 lower a score.
        sigma: The scale of the Gaussian of method 2.
        min_score: The score below which a box is dropped.
        method: 0 sets the score to 0, 1 multiplies it by ``1 - IoU``, 2 by
            ``exp(-IoU**2 / sigma)``.
        offset: 0 or 1, in pixels; a box is ``x2 - x1 + offset`` wide.

    Returns:
        ``(K,)`` int64 indices into ``boxes``, in the order they were taken.
    """
    from torchvision.ops import box_iou

    dtype = working_dtype(boxes, scores)
    left = torch.arange(boxes.shape[0], device=boxes.device)
    corners, score = boxes.to(dtype), scores.to(dtype)
    taken: list[int] = []
    while left.numel():
        best = int(score.argmax())
        dets[len(taken), :4] = corners[best]
        dets[len(taken), 4] = score[best]
        taken.append(int(left[best]))
        shifted = _add_offset(corners, offset)
        # Two boxes of no area have the IoU 0 / 0; neither lowers the other.
        iou = box_iou(shifted[best, None], shifted)[0].nan_to_num(nan=0.0)
        if method == 2:
            decay = torch.exp(-iou.square() / sigma)
        else:
            lowered = torch.zeros_like(iou) if method == 0 else 1 - iou
            decay = torch.where(iou >= iou_threshold, lowered, 1)
        score = score * decay
        keep = score >= min_score
        keep[best] = False
        left, corners, score = left[keep], corners[keep], score[keep]
    return torch.tensor(taken, dtype=torch.int64, device=boxes.device)


def _add_offset(boxes: Tensor, offset: int) -> Tensor:
    """Return boxes with ``offset`` added to x2 and y2.

    An IoU depends on x2 and y2 only through x2 + offset and y2 + offset.
    """
    return boxes + boxes.new_tensor([0, 0, offset, offset])
