# SPDX-License-Identifier: Apache-2.0
"""The set loss: every stage is matched and supervised by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.losses import accuracy
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.utils import reduce_mean
from mmengine.dist import get_world_size
from mmengine.structures import InstanceData
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
        ValueError: If a loss or matcher cannot be built.
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
        losses = {}
        for index, stage in enumerate(stages):
            single = self.loss_single_stage(
                stage, gt_bboxes, gt_labels, image_sizes
            )
            losses.update({f's{index}.{k}': v for k, v in single.items()})
        return losses

    @torch.no_grad()
    def match(
        self,
        stage: StageOutput,
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Tensor,
    ) -> Tensor:
        """Match queries to boxes one to one, image by image.

        Args:
            stage: What a stage predicts for B images with N queries.
            gt_bboxes: One (M_b, 4) per image, pixels.
            gt_labels: One (M_b,) per image.
            image_sizes: (B, 2) width and height in pixels.

        Returns:
            (B, N): index of the query's box in its image, -1 for background.
        """
        # The matcher takes finite costs only; the losses see what is there.
        logits, bboxes = (
            x.nan_to_num(0.0).clamp(-FINITE, FINITE)
            for x in (stage.cls_logits, stage.bboxes)
        )
        matches = []
        for image, (width, height) in enumerate(image_sizes.tolist()):
            result = self.assigner.assign(
                InstanceData(scores=logits[image], bboxes=bboxes[image]),
                InstanceData(labels=gt_labels[image], bboxes=gt_bboxes[image]),
                img_meta={'img_shape': (height, width)},
            )
            matches.append(result.gt_inds - 1)
        return torch.stack(matches)

    def loss_single_stage(
        self,
        stage: StageOutput,
        gt_bboxes: Sequence[Tensor],
        gt_labels: Sequence[Tensor],
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of one stage.

        Args:
            stage: What the stage predicts for B images with N queries.
            gt_bboxes: One (M_b, 4) per image, pixels.
            gt_labels: One (M_b,) per image.
            image_sizes: (B, 2) width and height in pixels.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_iou`` and ``pos_acc``.
        """
        matches = self.match(stage, gt_bboxes, gt_labels, image_sizes)
        image, query = (matches >= 0).nonzero(as_tuple=True)
        offsets = matches.new_tensor([0, *map(len, gt_labels)]).cumsum(0)
        target = matches[image, query] + offsets[image]
        labels = torch.cat(list(gt_labels))[target]
        boxes = torch.cat(list(gt_bboxes))[target].to(stage.bboxes)

        num_matched = reduce_mean(boxes.new_tensor([len(boxes)]))[0]
        one = 1 / get_world_size()  # in all processes together
        divisor = torch.where(num_matched > 0, num_matched, one)
        one_hot = torch.zeros_like(stage.cls_logits, dtype=torch.long)
        one_hot[image, query, labels] = 1
        predicted = stage.bboxes[image, query]
        scale = image_sizes.to(boxes).repeat(1, 2)[image]  # (matched, 4)
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
