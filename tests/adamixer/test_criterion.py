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


def giou(a: list[float], b: list[float]) -> float:
    def area(box: list[float]) -> float:
        return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)

    inner = area(
        [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
    )
    outer = area(
        [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
    )
    union = area(a) + area(b) - inner
    return inner / union - (outer - union) / outer


def l1(a: list[float], b: list[float], size: list[float]) -> float:
    return sum(abs(x - y) / s for x, y, s in zip(a, b, size * 2, strict=True))


def focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    if positive:
        return -0.25 * (1 - p) ** 2 * math.log(p)
    return -0.75 * p**2 * math.log(1 - p)


def cost(logits: list[float], label: int, box: list, gt: list, size: list):
    """The matching cost of one query and one box."""
    class_cost = focal(logits[label], True) - focal(logits[label], False)
    return 2 * class_cost + 5 * l1(box, gt, size) - 2 * giou(box, gt)


@pytest.fixture
def criterion() -> SetCriterion:
    return build(criterion_config())


def test_matching_and_losses_are_the_definition(
    criterion: SetCriterion,
) -> None:
    predicted = stage()
    boxes, labels = ground_truth(2, 3)
    matches = criterion.match([predicted], boxes, labels, SIZES)[0]
    found = {
        name.removeprefix('s0.'): value
        for name, value in criterion([predicted], boxes, labels, SIZES).items()
    }

    expected = {'loss_cls': 0.0, 'loss_bbox': 0.0, 'loss_iou': 0.0}
    right = 0
    for b in range(2):
        logits, pred = (x[b].tolist() for x in predicted[:2])
        gt, classes = boxes[b].tolist(), labels[b].tolist()
        size = SIZES[b].tolist()
        best = min(
            itertools.permutations(range(4), len(gt)),
            key=lambda queries: sum(
                cost(logits[q], classes[i], pred[q], gt[i], size)
                for i, q in enumerate(queries)
            ),
        )
        assert [matches[b].tolist().index(i) for i in range(len(gt))] == list(
            best
        )
        for q, c in itertools.product(range(4), range(3)):
            positive = q in best and classes[best.index(q)] == c
            expected['loss_cls'] += 2 * focal(logits[q][c], positive) / 5
        for i, q in enumerate(best):
            expected['loss_bbox'] += l1(pred[q], gt[i], size)  # 5 / 5
            expected['loss_iou'] += 2 * (1 - giou(pred[q], gt[i])) / 5
            right += logits[q].index(max(logits[q])) == classes[i]
    assert found.pop('pos_acc').item() == pytest.approx(100 * right / 5)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-4), name


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


@pytest.mark.parametrize('counts', [(2, 0), (9, 1)])
def test_less_and_more_boxes_than_queries(
    criterion: SetCriterion, counts: tuple[int, int]
) -> None:
    """What has no box is background, and no box is matched twice."""
    matches = criterion.match([stage()], *ground_truth(*counts), SIZES)[0]
    for found, num_boxes in zip(matches, counts, strict=True):
        boxes = found[found >= 0].tolist()
        assert len(set(boxes)) == len(boxes) == min(4, num_boxes)


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


def test_names_of_all_stages(criterion: SetCriterion) -> None:
    losses = criterion([stage(), stage()], *ground_truth(1, 1), SIZES)
    names = 'loss_bbox', 'loss_cls', 'loss_iou', 'pos_acc'
    assert sorted(losses) == [f's{i}.{name}' for i in (0, 1) for name in names]
    assert all(value.dim() == 0 for value in losses.values())


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
