# SPDX-License-Identifier: Apache-2.0
"""Read the detections of a model, and match them to the truth."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lors_det.errors import UsageError
from lors_det.files import check_file


@dataclass(frozen=True)
class Truth:
    """The objects of a data set.

    Attributes:
        name: The annotation file.
        coco: Its content.
        classes: Names by category id, in order of the ids.
        image_folder: What file names are relative to.
    """

    name: str
    coco: COCO
    classes: Mapping[int, str]
    image_folder: Path

    def image_path(self, image_id: int) -> Path:
        """Return the file of an image."""
        return self.image_folder / self.coco.imgs[image_id]['file_name']


def read_results(path: str, truth: Truth) -> COCO:
    """Read detections in the format of COCO's results.

    Args:
        path: JSON file, a list of ``{image_id, category_id, bbox, score}``;
            ``bbox`` is x, y, width, height in pixels.
        truth: The data set that they are of.

    Returns:
        The detections, with pycocotools' index.

    Raises:
        UsageError: If the file is missing, has another form or belongs to
            another data set.
    """
    check_file(path, 'RESULTS')
    known = {'image_id': truth.coco.imgs, 'category_id': truth.classes}
    try:
        content = json.loads(Path(path).read_bytes())
        ids = {key: {each[key] for each in content} for key in known}
        rows = [[*each['bbox'], each['score']] for each in content]
        numbers = np.array(rows, float).reshape(-1, 5)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise UsageError(
            f'RESULTS: {path} is cut off, or has another form: expected what '
            'tools/test.py --out FILE.bbox.json writes'
        ) from None
    if not rows:
        raise UsageError(f'RESULTS: {path} holds no detections')
    if not np.isfinite(numbers).all():
        raise UsageError(f'RESULTS: {path}: a box or score is not finite')
    for key, found in ids.items():
        unknown = sorted(found - set(known[key]), key=str)
        if unknown:
            raise UsageError(
                f'RESULTS: {path}: {len(unknown)} of {len(found)} values of '
                f'{key} are not in {truth.name}, like {unknown[0]!r}: '
                'expected results of that data set'
            )
    with contextlib.redirect_stdout(io.StringIO()):
        return truth.coco.loadRes(content)


def match(
    truth: Truth, detections: COCO, across_classes: bool = False
) -> COCOeval:
    """Match detections to objects as COCO does: by score, each object once.

    Args:
        truth: The objects.
        detections: The detections.
        across_classes: Whether a detection may be matched to an object of
            another class; only at IoU 0.5, and for objects of any size.

    Returns:
        An evaluator whose ``evalImgs`` are filled.
    """
    evaluator = COCOeval(truth.coco, detections, 'bbox')
    params: Any = evaluator.params
    params.catIds = list(truth.classes)
    params.maxDets = [100]
    if across_classes:
        params.useCats = 0
        params.iouThrs = np.array([0.5])
        params.areaRng, params.areaRngLbl = params.areaRng[:1], ['all']
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    return evaluator
