# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from lors_det.adamixer import StageOutput
from lors_det.adamixer.postprocess import select_topk, to_instances


def stage() -> StageOutput:
    logits = torch.tensor([[[3.0, -1.0], [0.5, 2.0], [-4.0, 1.0]]])
    boxes = torch.arange(12.0).view(1, 3, 4)
    return StageOutput(logits, boxes, boxes, boxes)


def test_best_pairs_of_query_and_class() -> None:
    scores, labels, boxes = select_topk(stage(), 4)
    torch.testing.assert_close(
        scores[0], torch.tensor([3.0, 2.0, 1.0, 0.5]).sigmoid()
    )
    assert labels[0].tolist() == [0, 1, 1, 0]
    assert boxes[0, :, 0].tolist() == [0.0, 4.0, 8.0, 4.0]


def test_more_than_there_is_is_cut() -> None:
    scores, _, _ = select_topk(stage(), 100)
    assert scores.shape == (1, 6)


def test_original_coordinates() -> None:
    top = select_topk(stage(), 2)
    (resized,) = to_instances(*top)
    (original,) = to_instances(*top, [(0.5, 2.0)])
    assert resized.bboxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert original.bboxes.tolist() == [[0, 0.5, 4, 1.5], [8, 2.5, 12, 3.5]]
