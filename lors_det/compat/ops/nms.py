# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression of axis-aligned boxes."""

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
    # An IoU depends on x2 and y2 only through x2 + offset and y2 + offset.
    boxes = boxes.to(dtype) + boxes.new_tensor([0, 0, offset, offset])
    # The compiled op compares in the precision of the boxes. Unrounded, a
    # threshold of 0.6 lies below the float32 IoU of exactly 3 / 5.
    threshold = torch.tensor(iou_threshold, dtype=dtype, device='cpu').item()
    kept: Tensor = torchvision_nms(boxes, scores.to(dtype), threshold)
    return kept
