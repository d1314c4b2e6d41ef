# SPDX-License-Identifier: Apache-2.0
"""Random images with random boxes, as a dataset would give them."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

NUM_BOXES = 5


def random_batch(
    batch_size: int, image_size: tuple[int, int], num_classes: int, seed: int
) -> dict[str, Any]:
    """Draw a batch for a detector's data preprocessor.

    Args:
        batch_size: Number of images.
        image_size: Height and width in pixels, of all images.
        num_classes: Number of classes.
        seed: The same seed gives the same batch.

    Returns:
        ``inputs``, uint8 images (3, H, W), and ``data_samples``, each with a
        few boxes (x1, y1, x2, y2 in pixels) and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    images, samples = [], []
    for _ in range(batch_size):
        images.append(
            torch.randint(
                256,
                (3, height, width),
                generator=generator,
                dtype=torch.uint8,
            )
        )
        corners = torch.rand(NUM_BOXES, 2, 2, generator=generator)
        corners = corners * torch.tensor([width - 1.0, height - 1.0])
        top_left, bottom_right = corners.amin(1), corners.amax(1) + 1
        sample = DetDataSample(
            metainfo={
                'img_shape': image_size,
                'ori_shape': image_size,
                'scale_factor': (1.0, 1.0),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([top_left, bottom_right], dim=-1),
            labels=torch.randint(
                num_classes, (NUM_BOXES,), generator=generator
            ),
        )
        samples.append(sample)
    return {'inputs': images, 'data_samples': samples}
