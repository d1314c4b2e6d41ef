# SPDX-License-Identifier: Apache-2.0
"""The set loss: every stage is matched and supervised by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.losses import accuracy
from mmdet.models.task_modules import HungarianAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.settings import check_loss_weights

FINITE = 1e7  # far beyond any image; its square is finite in float32


@MODELS.register_module()
class SetCriterion(nn.Module):
    """Hungarian matching, then focal, L1 and GIoU loss, of every stage.

    Each loss is summed over the batch and divided by the number of matched
    queries (mean over processes). Where no process has a box, the
    divisor is that of one box in all and the box losses are 0; the releases
    divide by zero.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector"; the
    set loss of DETR with the focal loss of Sparse R-CNN.

    Args:
        assigner: Config of the matcher (mmdet's ``HungarianAssigner``).
        loss_cls: Config of the class loss, on logits and one-hot targets.
        loss_bbox: Config of the box loss, on boxes relative to the image.
        loss_iou: Config of the overlap loss, on boxes in pixels.

    Raises:
        TypeError: If a setting has a wrong type or an unknown name.
        ValueError: If a loss or matcher cannot be built, or the matcher is
            another.
    """

    def __init__(
        self,
        assigner: Mapping[str, Any],
        loss_cls: Mapping[str, Any],
        loss_bbox: Mapping[str, Any],
        loss_iou: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.assigner = TASK_UTILS.build(assigner)
        if not isinstance(self.assigner, HungarianAssigner):
            raise ValueError(
                f'criterion.assigner.type={assigner.get("type")!r}: expected '
                "'HungarianAssigner'"
            )
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        self.loss_iou = MODELS.build(loss_iou)
        check_loss_weights(self)

    def forward(
        self,
        stages: Sequence[StageOutput],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of all stages.

        Args:
            stages: What every stage predicts for B images.
            gt_bboxes: One (M_b, 4) per image: x1, y1, x2, y2 in pixels of
                the resized image.
            gt_labels: One (M_b,) per image, from 0.
            image_sizes: (B, 2) width and height in pixels of the resized,
                un-padded images.

        Returns:
            ``s{stage}.loss_cls``, ``s{stage}.loss_bbox``,
            ``s{stage}.loss_iou``, and ``s{stage}.pos_acc``: the percentage
            of matched queries whose class is right, for the log only.
        """
        matches = self.match(stages, gt_bboxes, gt_labels, image_sizes)
        # As many in every stage. Found on the CPU: a device would wait.
        stage_index, image, query = (matches >= 0).nonzero(as_tuple=True)
        offsets = torch.tensor([0, *map(len, gt_labels)]).cumsum(0)
        target = matches[stage_index, image, query] + offsets[image]
        index = torch.stack([image, query, target]).unflatten(
            1, (len(stages), -1)
        )
        index = index.to(image_sizes.device, non_blocking=True)
        labels, boxes = torch.cat(list(gt_labels)), torch.cat(list(gt_bboxes))

        num_matched = reduce_mean(image_sizes.new_full((), index.shape[2]))
        one = 1 / get_world_size()  # in all processes together
        divisor = torch.where(num_matched > 0, num_matched, one)
        losses = {}
        for number, (stage, (image, query, target)) in enumerate(
            zip(stages, index.unbind(1), strict=True)
        ):
            single = self.loss_single_stage(
                stage,
                (image, query),
                labels[target],
                boxes[target].to(stage.bboxes),
                image_sizes.to(stage.bboxes).repeat(1, 2)[image],
                divisor,
            )
            losses.update({f's{number}.{k}': v for k, v in single.items()})
        return losses

    @torch.no_grad()
    def match(
        self,
        stages: Sequence[StageOutput],
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Tensor,
    ) -> Tensor:
        """Match queries to boxes one to one, stage by stage, image by image.

        Costs are computed where the predictions are, for all stages of an
        image at a time, and come to the CPU in one transfer.

        Args:
            stages: What S stages predict for B images with N queries.
            gt_bboxes: One (M_b, 4) per image, pixels.
            gt_labels: One (M_b,) per image.
            image_sizes: (B, 2) width and height in pixels.

        Returns:
            (S, B, N) on the CPU: index of the query's box in its image, -1
            for background.
        """
        # The matcher takes finite costs only; the losses see what is there.
        logits, bboxes = (
            torch.stack(list(x)).nan_to_num(0.0).clamp(-FINITE, FINITE)
            for x in (
                (stage.cls_logits for stage in stages),
                (stage.bboxes for stage in stages),
            )
        )
        costs = []
        for image, (width, height) in enumerate(image_sizes.tolist()):
            predicted = InstanceData(
                scores=logits[:, image].flatten(0, 1),
                bboxes=bboxes[:, image].flatten(0, 1),
            )
            boxes = InstanceData(
                labels=gt_labels[image], bboxes=gt_bboxes[image]
            )
            meta = {'img_shape': (height, width)}
            terms = [
                match_cost(
                    pred_instances=predicted, gt_instances=boxes, img_meta=meta
                )
                for match_cost in self.assigner.match_costs
            ]
            costs.append(torch.stack(terms).sum(0))  # (S N, M_b)
        sizes = [cost.numel() for cost in costs]
        at_once = torch.cat([cost.flatten() for cost in costs]).cpu()
        matches = torch.full(logits.shape[:3], -1)
        for image, cost in enumerate(at_once.split(sizes)):
            shape = (*matches.shape[::2], len(gt_labels[image]))
            for stage, of_stage in enumerate(cost.view(shape)):
                query, box = linear_sum_assignment(of_stage)
                matches[stage, image, query] = torch.from_numpy(box)
        return matches

    def loss_single_stage(
        self,
        stage: StageOutput,
        matched: tuple[Tensor, Tensor],
        labels: Tensor,
        boxes: Tensor,
        scale: Tensor,
        divisor: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of one stage.

        Args:
            stage: What the stage predicts for B images with N queries.
            matched: (P,) image and (P,) query of each matched query.
            labels: (P,) classes of their boxes.
            boxes: (P, 4) their boxes in pixels.
            scale: (P, 4) width, height, width, height of their images.
            divisor: What the sums are divided by.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou`` and ``pos_acc``.
        """
        one_hot = torch.zeros_like(stage.cls_logits, dtype=torch.long)
        image, query = matched
        one_hot[image, query, labels] = 1
        predicted = stage.bboxes[image, query]
        return {
            'loss_cls': self.loss_cls(
                stage.cls_logits.flatten(0, 1),
                one_hot.flatten(0, 1),
                avg_factor=divisor,
            ),
            'loss_bbox': self.loss_bbox(
                predicted / scale, boxes / scale, avg_factor=divisor
            ),
            'loss_iou': self.loss_iou(predicted, boxes, avg_factor=divisor),
            'pos_acc': accuracy(
                stage.cls_logits[image, query].detach(), labels
            ).squeeze(),
        }
