# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression against its definition."""

import math

import pytest
import torch
from mmcv.ops import nms, soft_nms
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


def soft(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> list[tuple[int, float]]:
    """Return the indices taken and their scores when taken."""
    corners = boxes.tolist()
    left = dict(enumerate(scores.tolist()))
    taken = []
    while left:
        best = max(left, key=lambda index: left[index])
        taken.append((best, left.pop(best)))
        for index in list(left):
            overlap = iou(corners[best], corners[index], offset)
            if method == 'gaussian':
                left[index] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[index] *= 0 if method == 'naive' else 1 - overlap
            if left[index] < min_score:
                del left[index]
    return taken


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.4, 0.7])
def test_nms(threshold: float, offset: int, dtype: torch.dtype) -> None:
    """The kept boxes, by descending score; exact."""
    boxes, scores = make_boxes(60, dtype)
    dets, kept = nms(boxes, scores, threshold, offset=offset)
    # Naive soft suppression sets the scores of dropped boxes to 0.
    taken = soft(boxes, scores, threshold, 1, 1e-9, 'naive', offset)
    expected = [index for index, _ in taken]
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


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_softnms(method: str, offset: int) -> None:
    """The boxes taken, in order, and their scores; float64, to 1e-12."""
    boxes, scores = make_boxes(40)
    dets, taken = soft_nms(
        boxes, scores, 0.3, 0.5, 0.05, method=method, offset=offset
    )
    expected = soft(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    assert 1 < len(expected) < 40
    assert taken.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[taken], rtol=0, atol=0)
    scores = torch.tensor([score for _, score in expected])
    torch.testing.assert_close(dets[:, 4], scores, rtol=0, atol=1e-12)


def test_softnms_of_nothing_and_of_empty_boxes() -> None:
    """No boxes give none; boxes of no area do not lower one another."""
    boxes = torch.tensor([[3.0, 1, 3, 1], [3, 1, 3, 1]])
    scores = torch.tensor([0.5, 0.9])
    assert soft_nms(boxes[:0], scores[:0])[1].tolist() == []
    dets, taken = soft_nms(boxes, scores, method='gaussian')
    assert taken.tolist() == [1, 0]
    assert torch.equal(dets[:, 4], scores[taken])
