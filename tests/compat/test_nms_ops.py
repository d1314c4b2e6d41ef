# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression against its definition."""

import pytest
import torch
from mmcv.ops import nms
from torch import Tensor

DTYPES = [torch.float32, torch.float64]


def make_boxes(
    count: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Return boxes ``(count, 4)`` that overlap much, and distinct scores."""
    corner = torch.rand(count, 2) * 20
    size = torch.rand(count, 2) * 15 + 10
    scores = (torch.randperm(count) + 1) / (count + 1)
    boxes = torch.cat([corner, corner + size], dim=1)
    return boxes.to(dtype), scores.to(dtype)


def iou(first: list[float], second: list[float], offset: int) -> float:
    """Return the IoU of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0]) + offset
    height = min(first[3], second[3]) - max(first[1], second[1]) + offset
    inter = max(width, 0) * max(height, 0)
    areas = [
        (box[2] - box[0] + offset) * (box[3] - box[1] + offset)
        for box in (first, second)
    ]
    return inter / (sum(areas) - inter)


def greedy(
    boxes: Tensor, scores: Tensor, threshold: float, offset: int
) -> list[int]:
    """Return the indices kept, by descending score."""
    corners = boxes.tolist()
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        overlaps = [iou(corners[k], corners[index], offset) for k in kept]
        if max(overlaps, default=0) <= threshold:
            kept.append(index)
    return kept


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.4, 0.7])
def test_nms(threshold: float, offset: int, dtype: torch.dtype) -> None:
    """The kept boxes, by descending score; exact."""
    boxes, scores = make_boxes(60, dtype)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    expected = greedy(boxes, scores, threshold, offset)
    assert 1 < len(expected) < 60
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


@pytest.mark.parametrize('dtype', DTYPES)
def test_nms_keeps_a_box_at_the_threshold(dtype: torch.dtype) -> None:
    """An IoU of 3 / 5 is not above 0.6, although float32(0.6) > 0.6."""
    boxes = torch.tensor([[0, 0, 4, 1], [1, 0, 5, 1]], dtype=dtype)
    scores = torch.tensor([0.5, 0.9], dtype=dtype)
    assert nms(boxes, scores, 0.6)[1].tolist() == [1, 0]
    assert nms(boxes, scores, 0.59)[1].tolist() == [1]


def test_nms_of_nothing_and_of_half_scores() -> None:
    """No boxes give no indices; boxes and scores may differ in dtype."""
    boxes = torch.tensor([[0.0, 0, 4, 1], [0, 0, 4, 1], [9, 9, 9, 9]])
    assert nms(boxes[:0], boxes.new_zeros(0), 0.5)[1].tolist() == []
    scores = torch.tensor([0.25, 0.5, 0.75]).half()
    assert nms(boxes, scores, 0.5)[1].tolist() == [2, 1]
