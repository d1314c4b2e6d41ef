# SPDX-License-Identifier: Apache-2.0
"""Objects and detections in memory, to be matched."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from lors_det.analysis.results import Truth

#: image_id, category_id, bbox
Object = tuple[int, int, Sequence[float]]


def truth_of(objects: Sequence[Object], num_images: int = 3) -> Truth:
    """A data set of cats (1), dogs (2) and, without any, birds (3)."""
    coco = COCO()
    coco.dataset = {
        'images': [
            {'id': i, 'file_name': f'{i}.png', 'width': 400, 'height': 300}
            for i in range(1, num_images + 1)
        ],
        'categories': [
            {'id': i, 'name': name}
            for i, name in enumerate(('cat', 'dog', 'bird'), 1)
        ],
        'annotations': [
            {
                'id': number,
                'image_id': image,
                'category_id': category,
                'bbox': list(box),
                'area': box[2] * box[3],
                'iscrowd': 0,
            }
            for number, (image, category, box) in enumerate(objects, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    classes = {1: 'cat', 2: 'dog', 3: 'bird'}
    return Truth('small.json', coco, classes, Path())


def detection(
    image: int, category: int, box: Sequence[float], score: float
) -> dict[str, Any]:
    return {
        'image_id': image,
        'category_id': category,
        'bbox': list(box),
        'score': score,
    }


def noisy(
    seed: int = 0, num_images: int = 12
) -> tuple[list[Object], list[dict[str, Any]]]:
    """Objects of all sizes, and detections with every kind of error."""
    rng = np.random.default_rng(seed)
    objects: list[Object] = []
    found = []
    for image in range(1, num_images + 1):
        for _ in range(rng.integers(1, 6)):
            box = [*rng.uniform(0, 150, 2), *rng.choice([20, 60, 140], 2)]
            objects.append((image, int(rng.integers(1, 3)), box))
        for _, category, box in objects[-4:] * 3:  # some of the last image
            moved = (np.array(box) * rng.normal(1, 0.1, 4)).tolist()
            category = category if rng.random() < 0.8 else 3 - category
            score = round(float(rng.random()), 2)  # some are equal
            found.append(detection(image, category, moved, score))
    return objects, found
