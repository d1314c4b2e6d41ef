# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision, with intervals by bootstrap over images."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

Array = np.ndarray[Any, Any]

#: The columns of `class_ap`.
METRICS = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
RECALLS = np.linspace(0, 1, 101)


def precision_curves(
    evaluator: COCOeval, images: Sequence[int] | None = None
) -> Array:
    """Return the precision at 101 recalls.

    Args:
        evaluator: See `lors_det.analysis.results.match`.
        images: Index of the images that count, as often as it is given;
            each counts once if there are none.

    Returns:
        (T, 101, K, A) for IoUs 0.5, 0.55 ... 0.95, classes, and areas (all,
        small, medium, large); NaN where there are no objects.
    """
    evaluator = copy.copy(evaluator)
    if images is not None:
        size = len(evaluator.params.imgIds)
        evaluator.evalImgs = [
            evaluator.evalImgs[start + image]
            for start in range(0, len(evaluator.evalImgs), size)
            for image in images
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    precision = evaluator.eval['precision'][..., -1]
    return np.where(precision < 0, np.nan, precision)


def class_ap(precision: Array) -> Array:
    """Return COCO's numbers for each class.

    Args:
        precision: See `precision_curves`.

    Returns:
        (K, 6) in `METRICS`' order; NaN where there are no objects.
    """
    ap = precision.mean(1)  # (T, K, A)
    every, *sizes = ap.mean(0).T
    return np.stack([every, ap[0, :, 0], ap[5, :, 0], *sizes], axis=1)


def with_mean(values: Array) -> Array:
    """Put the mean over classes, of those that have objects, first.

    Args:
        values: (K, ...), NaN where a class has no objects.

    Returns:
        (1 + K, ...).
    """
    count = (~np.isnan(values)).sum(0)
    mean = np.nansum(values, 0) / np.where(count, count, np.nan)
    return np.concatenate([[mean], values])


def bootstrap(evaluator: COCOeval, num_resamples: int) -> Array:
    """Return COCO's numbers for images that are drawn with replacement.

    Each call draws the same images: the difference of two models has an
    interval, too. A class that a resample lacks keeps its AP, so that all
    means are over the same classes.

    Args:
        evaluator: See `lors_det.analysis.results.match`.
        num_resamples: Number of resamples (B).

    Returns:
        (B, 1 + K, 6), the mean over classes first.
    """
    size = len(evaluator.params.imgIds)
    rng = np.random.default_rng(0)
    point = class_ap(precision_curves(evaluator))
    samples = []
    for _ in range(num_resamples):
        draw = rng.integers(size, size=size).tolist()
        ap = class_ap(precision_curves(evaluator, draw))
        samples.append(with_mean(np.where(np.isnan(ap), point, ap)))
    return np.array(samples)


def average_precision(hits: Array, num_objects: int) -> float:
    """Return the AP of detections of one class at one IoU, as COCO's.

    Args:
        hits: (D,) whether each is right, the highest score first.
        num_objects: How many there are to find.

    Returns:
        Mean over 101 recalls; NaN if there are no objects.
    """
    if not num_objects:
        return np.nan
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    best = np.append(best, 0)  # beyond the last recall
    return float(best[np.searchsorted(found / num_objects, RECALLS)].mean())
