# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.factories import build, criterion_config, positions
from mmengine.structures import InstanceData
from torch import Tensor

from lors_det.adamixer import SetCriterion, StageOutput
from lors_det.adamixer.geometry import decode_xyzr

SIZES = torch.tensor([[96.0, 64.0], [80.0, 60.0]])


def stage(batch: int = 2, num_queries: int = 4) -> StageOutput:
    xyzr = positions(batch, num_queries).requires_grad_()
    logits = torch.randn(batch, num_queries, 3, requires_grad=True)
    return StageOutput(logits, decode_xyzr(xyzr), xyzr, xyzr)


def ground_truth(*counts: int) -> tuple[list[Tensor], list[Tensor]]:
    boxes = [decode_xyzr(positions(1, n)[0]) for n in counts]
    return boxes, [torch.randint(0, 3, (n,)) for n in counts]


@pytest.fixture
def criterion() -> SetCriterion:
    return build(criterion_config())


def test_no_box_in_the_batch(criterion: SetCriterion) -> None:
    predicted = stage()
    losses = criterion([predicted, stage()], *ground_truth(0, 0), SIZES)
    assert losses['s0.loss_cls'] > 0
    assert losses['s0.loss_bbox'] == losses['s0.loss_iou'] == 0
    assert losses['s0.pos_acc'] == 0
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert predicted.cls_logits.grad.isfinite().all()
    assert predicted.cls_logits.grad.any()
    # Box branches stay in the graph: data-parallel training waits for them.
    assert predicted.xyzr.grad is not None
    assert not predicted.xyzr.grad.any()


def test_matches_are_those_of_mmdet(criterion: SetCriterion) -> None:
    """For all stages and images at once, with ties and empty images too."""
    for trial in range(250):
        torch.manual_seed(trial)
        stages = [stage(num_queries=6), stage(num_queries=6)]
        if trial % 2:  # the same query twice: equal costs
            for each in stages:
                each.cls_logits.data[:, 1] = each.cls_logits.data[:, 0]
                each.bboxes.data[:, 1] = each.bboxes.data[:, 0]
        counts = torch.randint(0, 10, (2,)).tolist()
        boxes, labels = ground_truth(*counts)
        matches = criterion.match(stages, boxes, labels, SIZES)
        for s, b in itertools.product(range(2), range(2)):
            expected = criterion.assigner.assign(
                InstanceData(
                    scores=stages[s].cls_logits[b].detach(),
                    bboxes=stages[s].bboxes[b].detach(),
                ),
                InstanceData(labels=labels[b], bboxes=boxes[b]),
                img_meta={'img_shape': SIZES[b].flip(0).tolist()},
            )
            assert matches[s, b].tolist() == (expected.gt_inds - 1).tolist()


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize('what', ['cls_logits', 'bboxes'])
def test_bad_numbers_reach_the_loss(
    criterion: SetCriterion, what: str, value: float
) -> None:
    """They are matched like others: what skips a step is the loss."""
    bad = stage()
    bad = bad._replace(**{what: torch.full_like(getattr(bad, what), value)})
    losses = criterion([bad], *ground_truth(2, 1), SIZES)
    total = sum(v for k, v in losses.items() if 'loss' in k)
    assert value == 1e30 or not total.isfinite()


def test_another_assigner() -> None:
    config = criterion_config()
    config['assigner'] = {'type': 'PointAssigner'}
    with pytest.raises(
        ValueError, match=r"assigner.type='PointAssigner': exp"
    ):
        build(config)
