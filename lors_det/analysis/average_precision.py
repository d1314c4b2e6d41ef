# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision, with intervals by bootstrap over images.

A bootstrap needs the AP of hundreds of resamples. pycocotools matches the
detections, once; its ``accumulate`` would take a second per resample of 70
images, so that the sums over ranked detections are done here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

Array = np.ndarray[Any, Any]

#: The columns of `summary`.
METRICS = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Ranking:
    """Detections of one class, the highest score first.

    Attributes:
        images: (D,) index of the image of each detection.
        hits: (T, D) whether it is right, at T thresholds of the IoU.
        misses: (T, D) whether it is wrong; neither where it is ignored.
        num_objects: (I,) objects in each image.
    """

    images: Array
    hits: Array
    misses: Array
    num_objects: Array

    def precision(self, weights: Array | None = None) -> Array:
        """Return the precision at 101 recalls, as COCO's curves.

        Args:
            weights: (I,) how often each image counts; once if not given.

        Returns:
            (T, 101), the highest precision at this recall or a higher one;
            NaN if there are no objects.
        """
        if weights is None:
            weights = np.ones_like(self.num_objects)
        total = weights @ self.num_objects
        if not total:
            return np.full((len(self.hits), len(RECALLS)), np.nan)
        each = weights[self.images]
        hits = np.cumsum(self.hits * each, axis=1)  # (T, D)
        found = hits + np.cumsum(self.misses * each, axis=1)
        precision = hits / np.maximum(found, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.pad(best, ((0, 0), (0, 1)))  # 0 beyond the last recall
        places = [np.searchsorted(row, RECALLS) for row in hits / total]
        return np.take_along_axis(best, np.array(places), axis=1)


def rank(evaluator: COCOeval) -> list[list[Ranking]]:
    """Sort matched detections by their scores.

    Args:
        evaluator: See `lors_det.analysis.results.match`.

    Returns:
        A ranking for each class (K) and range of areas (A: all, small,
        medium, large).
    """
    params, parts = evaluator.params, evaluator.evalImgs
    size, num_areas = len(params.imgIds), len(params.areaRng)
    rankings = [
        _rank(parts[start : start + size], len(params.iouThrs))
        for start in range(0, len(parts), size)
    ]
    return [
        rankings[start : start + num_areas]
        for start in range(0, len(rankings), num_areas)
    ]


def _rank(images: list[dict[str, Any] | None], num_thresholds: int) -> Ranking:
    """Join the images of one class and range of areas."""
    pairs = [(i, each) for i, each in enumerate(images) if each is not None]
    num_objects = np.zeros(len(images), int)
    for i, each in pairs:
        num_objects[i] = np.count_nonzero(np.equal(each['gtIgnore'], 0))
    scores = np.concatenate([[], *(each['dtScores'] for _, each in pairs)])
    index = [np.full(len(each['dtScores']), i) for i, each in pairs]
    empty = np.zeros((num_thresholds, 0))
    order = np.argsort(-scores, kind='stable')
    matched, ignored = (
        np.concatenate([empty, *(each[key] for _, each in pairs)], 1)[:, order]
        for key in ('dtMatches', 'dtIgnore')
    )
    return Ranking(
        images=np.concatenate([[], *index]).astype(int)[order],
        hits=(matched > 0) & (ignored == 0),
        misses=(matched == 0) & (ignored == 0),
        num_objects=num_objects,
    )


def class_ap(
    rankings: list[list[Ranking]], weights: Array | None = None
) -> Array:
    """Return COCO's numbers for each class.

    Args:
        rankings: See `rank`.
        weights: See `Ranking.precision`.

    Returns:
        (K, 6) in `METRICS`' order; NaN where there are no objects.
    """
    ap = np.array(
        [[a.precision(weights).mean(1) for a in areas] for areas in rankings]
    )  # (K, A, T)
    every, *sizes = ap.mean(2).T
    return np.stack([every, ap[:, 0, 0], ap[:, 0, 5], *sizes], axis=1)


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


def bootstrap(
    rankings: list[list[Ranking]], num_resamples: int, seed: int = 0
) -> Array:
    """Return COCO's numbers for images that are drawn with replacement.

    The same seed draws the same images: the difference of two models has an
    interval, too. A class that a resample lacks keeps its AP, so that all
    means are over the same classes.

    Args:
        rankings: See `rank`.
        num_resamples: Number of resamples (B).
        seed: Of the generator that draws.

    Returns:
        (B, 1 + K, 6), the mean over classes first.
    """
    size = len(rankings[0][0].num_objects)
    draws = np.random.default_rng(seed).multinomial(
        size, np.full(size, 1 / size), num_resamples
    )
    point = class_ap(rankings)
    samples = (class_ap(rankings, weights) for weights in draws)
    return np.array(
        [with_mean(np.where(np.isnan(x), point, x)) for x in samples]
    )
