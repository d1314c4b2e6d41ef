# SPDX-License-Identifier: Apache-2.0
"""Draw random images with random boxes."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

NUM_BOXES = 5


def random_batch(
    batch_size: int, image_size: tuple[int, int], num_classes: int, seed: int
) -> dict[str, Any]:
    """Draw a batch as a data loader returns it.

    Args:
        batch_size: Number B of images.
        image_size: Height and width in pixels, of all images.
        num_classes: Number of classes.
        seed: The same seed gives the same batch.

    Returns:
        ``inputs``, uint8 (B, 3, H, W), and ``data_samples``, each with a few
        boxes (x1, y1, x2, y2 in pixels) and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, 3, *image_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    height, width = image_size
    corners = torch.rand(batch_size, NUM_BOXES, 2, 2, generator=generator)
    corners = corners * torch.tensor([width - 1.0, height - 1.0])
    boxes = torch.cat([corners.amin(2), corners.amax(2) + 1], dim=-1)
    labels = torch.randint(
        num_classes, (batch_size, NUM_BOXES), generator=generator
    )
    meta = {
        'img_shape': image_size,
        'ori_shape': image_size,
        'scale_factor': (1.0, 1.0),
    }
    samples = [DetDataSample(metainfo=meta) for _ in range(batch_size)]
    for sample, own_boxes, own_labels in zip(
        samples, boxes, labels, strict=True
    ):
        sample.gt_instances = InstanceData(bboxes=own_boxes, labels=own_labels)
    return {'inputs': list(images), 'data_samples': samples}
