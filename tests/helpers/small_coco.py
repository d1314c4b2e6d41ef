# SPDX-License-Identifier: Apache-2.0
"""A small data set on the disk, to be spoilt in every way."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from PIL import Image

from lors_det.datasets.coco import CheckedCocoDataset

Change = Callable[[dict[str, Any]], Any]
CLASSES = ('cat', 'dog')
PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': True},
    {
        'type': 'PackDetInputs',
        'meta_keys': ('img_id', 'ori_shape', 'img_shape', 'scale_factor'),
    },
]


def content() -> dict[str, Any]:
    """Four images of 40 x 30 pixels, numbers 1 to 4, with two boxes each."""
    return {
        'images': [
            {'id': i, 'file_name': f'{i}.png', 'width': 40, 'height': 30}
            for i in range(1, 5)
        ],
        'categories': [
            {'id': 10 * (i + 1), 'name': name}
            for i, name in enumerate(CLASSES)
        ],
        'annotations': [
            {
                'id': 10 * image + k,
                'image_id': image,
                'category_id': 10 * (k + 1),
                'bbox': [3.0 + k, 4.0, 12.5, 10.0],
                'area': 125.0,
                'iscrowd': 0,
            }
            for image in range(1, 5)
            for k in range(2)
        ],
    }


def pixels(seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (30, 40, 3), np.uint8)


def write(root: Path) -> Path:
    """Write the data set, without defects."""
    init_default_scope('mmdet')
    (root / 'images').mkdir()
    for i in range(1, 5):
        Image.fromarray(pixels(i)).save(root / 'images' / f'{i}.png')
    write_annotations(root, content())
    return root


def write_annotations(root: Path, annotations: Any) -> None:
    (root / 'ann.json').write_text(json.dumps(annotations))


def change(key: str, index: int, **values: Any) -> Change:
    """Give an entry other values."""
    return lambda c: c[key][index].update(values)


def without(key: str, index: int, name: str) -> Change:
    """Take a value from an entry."""
    return lambda c: c[key][index].pop(name)


def spoil(root: Path, *changes: Change) -> dict[str, Any]:
    """Write changed annotations, and return them."""
    annotations = content()
    for each in changes:
        each(annotations)
    write_annotations(root, annotations)
    return annotations


@contextlib.contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what mmengine's logger, which hands nothing up, is given."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        'ann_file': 'ann.json',
        'data_root': str(root),
        'data_prefix': {'img': 'images/'},
        'metainfo': {'classes': CLASSES},
        'filter_cfg': {'filter_empty_gt': True, 'min_size': 8},
        'pipeline': PIPELINE,
        'serialize_data': False,  # it collects garbage, which takes long
        **changes,
    }


def load(root: Path, **changes: Any) -> CheckedCocoDataset:
    return CheckedCocoDataset(**config(root, **changes))


def evaluate(metric: CocoMetric, samples: list[dict[str, Any]]) -> Any:
    """AP of detections, by name."""
    metric.dataset_meta = {'classes': CLASSES}
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def found_in(images: Iterable[int | str]) -> list[dict[str, Any]]:
    """Five detections in each of the images, of 40 x 30 pixels."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for image in images:
        corner = torch.rand(5, 2, generator=generator) * 10
        boxes = {
            'bboxes': torch.cat([corner, corner + 12], dim=1),
            'scores': torch.rand(5, generator=generator),
            'labels': torch.arange(5) % 2,
        }
        samples.append(
            {'img_id': image, 'ori_shape': (30, 40), 'pred_instances': boxes}
        )
    return samples
