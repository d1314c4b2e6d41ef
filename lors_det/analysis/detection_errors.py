# SPDX-License-Identifier: Apache-2.0
"""Sort what is wrong with detections: TIDE's kinds, and confusions.

TIDE: Bolya et al., ECCV 2020 (arXiv:2008.08115), Sec. 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pycocotools import mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lors_det.analysis.average_precision import (
    Array,
    average_precision,
    with_mean,
)
from lors_det.analysis.results import Truth, match

#: IoU from which on a detection has found an object, and below which it has
#: found background: t_f and t_b of the paper.
FOREGROUND, BACKGROUND = 0.5, 0.1
#: In place of a category: background, or missed.
NOTHING = -1
#: Kinds of errors and what they mean.
KINDS = {
    'Cls': 'right place, wrong class',
    'Loc': 'right class, IoU of 0.1 to 0.5',
    'Both': 'wrong class, IoU of 0.1 to 0.5',
    'Dupe': 'an object that a higher score has found already',
    'Bkg': 'no object there (IoU below 0.1)',
    'Miss': 'object without any detection, not even one of kind Cls or Loc',
}


@dataclass(frozen=True)
class Errors:
    """Detections and objects, each with its kind of error.

    Attributes:
        detections: A row each: ``image_id``, ``category_id``, ``score``,
            ``hit``, ``kind`` (one of `KINDS`; empty if it is a hit),
            ``object_class`` (what it should be, for Cls and Loc) and
            ``repairs`` (whether mending that makes it a hit).
        objects: ``image_id``, ``category_id``, ``hit`` and ``kind`` (Miss or
            empty).
        categories: Ids of the classes.
    """

    detections: pd.DataFrame
    objects: pd.DataFrame
    categories: list[int]

    def counts(self) -> dict[str, int]:
        """Return how many errors there are of each kind."""
        kinds = pd.concat([self.detections['kind'], self.objects['kind']])
        return {kind: int((kinds == kind).sum()) for kind in KINDS}

    def costs(self) -> dict[str, float]:
        """Return by how much AP50 rises when one kind of error is mended.

        Source: TIDE, Sec. 2.2. A Cls or Loc error becomes a hit where its
        object has no better one, or is removed; Both, Dupe and Bkg are
        removed; a missed object no longer counts.
        """
        found, objects = self.detections, self.objects
        before = self._ap(found, objects)
        costs = {}
        for kind in KINDS:
            of_kind = found['kind'] == kind
            mended = of_kind & found['repairs']
            changed = found.assign(
                category_id=found['category_id'].where(
                    ~mended, found['object_class']
                ),
                hit=found['hit'] | mended,
            )[mended | ~of_kind]
            after = self._ap(changed, objects[objects['kind'] != kind])
            # As the authors' code: less than 0 is a matter of rounding.
            costs[kind] = max(after - before, 0.0)
        return costs

    def _ap(self, found: pd.DataFrame, objects: pd.DataFrame) -> float:
        """Return AP50 of all classes."""
        found = found.sort_values('score', ascending=False, kind='stable')
        ap = [
            average_precision(
                found['hit'][found['category_id'] == category].to_numpy(),
                (objects['category_id'] == category).sum(),
            )
            for category in self.categories
        ]
        return float(with_mean(np.array(ap))[0])


def find_errors(evaluator: COCOeval) -> Errors:
    """Sort the errors of a model into TIDE's six kinds.

    Args:
        evaluator: See `lors_det.analysis.results.match`.
    """
    found, objects = _rows(evaluator)
    found = found.assign(kind='', object=-1)
    by_image = objects.groupby('image_id').indices
    for image_id, rows in found.groupby('image_id').indices.items():
        here = objects.iloc[by_image.get(image_id, [])]
        part = found.iloc[rows]
        kinds, nearest = _kinds(evaluator, part, here)
        found.loc[part.index, 'kind'] = kinds
        found.loc[part.index, 'object'] = nearest
    found['object_class'] = found['object'].map(objects['category_id'])
    mendable = found[found['kind'].isin(['Cls', 'Loc'])]
    open_objects = objects.index[~objects['hit']]
    best = (
        mendable[mendable['object'].isin(open_objects)]
        .sort_values('score', ascending=False, kind='stable')
        .drop_duplicates('object')
    )
    found['repairs'] = found.index.isin(best.index)
    missed = ~objects['hit'] & ~objects.index.isin(mendable['object'])
    objects['kind'] = np.where(missed, 'Miss', '')
    return Errors(found, objects, list(evaluator.params.catIds))


def _kinds(
    evaluator: COCOeval, found: pd.DataFrame, objects: pd.DataFrame
) -> tuple[Array, Array]:
    """Return the kind of each detection of an image, and its object's id."""
    if not len(objects):
        return np.where(found['hit'], '', 'Bkg'), np.full(len(found), -1)
    iou = mask.iou(
        [evaluator.cocoDt.anns[i]['bbox'] for i in found.index],
        [evaluator.cocoGt.anns[i]['bbox'] for i in objects.index],
        [0] * len(objects),
    )  # (D, O)
    is_same = (
        found['category_id'].to_numpy()[:, None]
        == objects['category_id'].to_numpy()
    )
    same, other = iou * is_same, iou * ~is_same
    right, wrong = same.max(1), other.max(1)
    # In the order of the authors' code.
    is_loc = (right >= BACKGROUND) & (right < FOREGROUND)
    kinds = np.select(
        [
            found['hit'].to_numpy(),
            is_loc,
            wrong >= FOREGROUND,
            right >= FOREGROUND,
            np.maximum(right, wrong) < BACKGROUND,
        ],
        ['', 'Loc', 'Cls', 'Dupe', 'Bkg'],
        'Both',
    )
    nearest = np.where(is_loc, same.argmax(1), other.argmax(1))
    return kinds, objects.index.to_numpy()[nearest]


def _rows(evaluator: COCOeval) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return detections and objects that count, matched at IoU 0.5, by id."""
    every_size = evaluator.params.areaRng[0]
    tables = []
    for key, coco in (('dt', evaluator.cocoDt), ('gt', evaluator.cocoGt)):
        matches: dict[int, int] = {}
        for each in evaluator.evalImgs:
            if each is None or each['aRng'] != every_size:
                continue
            # (T, N) for detections, (N) for objects.
            ignored = np.atleast_2d(each[f'{key}Ignore'])[0]
            matched = each[f'{key}Matches'][0]
            rows = zip(each[f'{key}Ids'], matched, ignored, strict=True)
            matches |= {i: int(m) for i, m, ignore in rows if not ignore}
        table = pd.DataFrame(
            [coco.anns[i] for i in matches],
            list(matches),
            ['image_id', 'category_id', 'score'],
        )
        table['match'] = list(matches.values())
        tables.append(table.assign(hit=table['match'] > 0))
    return tables[0], tables[1]


@dataclass(frozen=True)
class Confident:
    """Detections above a score, matched to objects of any class.

    Attributes:
        boxes: All detections.
        found: Those above the score, by id: ``image_id``, ``category_id``,
            ``other`` (the category of their object, or `NOTHING`) and
            ``right`` (whether both are the same).
        objects: The same of the objects and their detections.
    """

    boxes: COCO
    found: pd.DataFrame
    objects: pd.DataFrame


def find_confident(
    truth: Truth, models: Mapping[str, COCO], score_thr: float
) -> dict[str, Confident]:
    """Say what each confident detection and each object is taken for.

    Args:
        truth: The objects.
        models: Detections by the model's name.
        score_thr: Those with a lower score do not count.
    """
    results = {}
    for name, boxes in models.items():
        found, objects = _rows(match(truth, boxes, across_classes=True))
        found = found[found['score'] >= score_thr]
        tables = []
        for table, others in ((found, objects), (objects, found)):
            other = table['match'].map(others['category_id']).fillna(NOTHING)
            right = table['category_id'] == other
            tables.append(table.assign(other=other, right=right))
        results[name] = Confident(boxes, *tables)
    return results
