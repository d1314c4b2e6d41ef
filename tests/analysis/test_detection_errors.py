# SPDX-License-Identifier: Apache-2.0
"""Average precision, its intervals, and errors by kind."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lors_det.analysis.average_precision import (
    bootstrap,
    class_ap,
    precision_curves,
    with_mean,
)
from lors_det.analysis.detection_errors import (
    KINDS,
    Errors,
    find_confident,
    find_errors,
)
from lors_det.analysis.report_figures import (
    calibration_error,
    confusion_matrix,
)
from lors_det.analysis.results import Truth, match

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


CAT, DOG = [10, 10, 20, 20], [60, 10, 20, 20]
OBJECTS: list[Object] = [
    (image, category, box)
    for image in (1, 2, 3)
    for category, box in ((1, CAT), (2, DOG))
]
#: Scores of the images' detections.
SCORES = {1: 0.9, 2: 0.8, 3: 0.7}


def perfect() -> list[dict[str, Any]]:
    return [detection(i, c, box, SCORES[i]) for i, c, box in OBJECTS]


def load(truth: Truth, found: list[dict[str, Any]]) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return truth.coco.loadRes(copy.deepcopy(found))


def analyse(
    truth: Truth, found: list[dict[str, Any]]
) -> tuple[np.ndarray[Any, Any], Errors]:
    """COCO's numbers, the mean over classes first, and all errors."""
    matched = match(truth, load(truth, found))
    return with_mean(class_ap(precision_curves(matched))), find_errors(matched)


def test_perfect_detections() -> None:
    ap, errors = analyse(truth_of(OBJECTS), perfect())
    assert ap[0, :4].tolist() == [1, 1, 1, 1]
    assert np.isnan(ap[0, 4:]).all()  # no object has that size
    assert np.isnan(ap[3]).all()  # no birds
    assert errors.counts() == dict.fromkeys(KINDS, 0)
    assert errors.costs() == dict.fromkeys(KINDS, 0)


# The first detection, the cat of image 1, is replaced by these.
PLANTED = {
    'Cls': [detection(1, 2, CAT, 0.9)],
    'Loc': [detection(1, 1, [20, 10, 20, 20], 0.9)],
    'Both': [
        detection(1, 1, CAT, 0.9),
        detection(1, 2, [20, 10, 20, 20], 0.95),
    ],
    'Dupe': [detection(1, 1, CAT, 0.9), detection(1, 1, CAT, 0.85)],
    'Bkg': [detection(1, 1, CAT, 0.9), detection(1, 2, [200] * 4, 0.95)],
    'Miss': [],
}


@pytest.mark.parametrize('kind', KINDS)
def test_one_error_is_of_its_kind_and_costs_what_is_lost(kind: str) -> None:
    found = PLANTED[kind] + perfect()[1:]
    ap, errors = analyse(truth_of(OBJECTS), found)
    assert errors.counts() == {each: int(each == kind) for each in KINDS}
    lost = 1 - ap[0, 1]
    assert lost > 0.01
    expected = {each: lost if each == kind else 0 for each in KINDS}
    assert errors.costs() == pytest.approx(expected)


def test_errors_are_those_of_the_authors_code() -> None:
    """Recorded from tidecv 1.0.1 (MIT); it gives percent."""
    objects, found = noisy()
    for number, each in enumerate(found):
        each['score'] += number / 1e6  # no two are equal
    ap, errors = analyse(truth_of(objects, num_images=12), found)
    assert 100 * ap[0, 1] == pytest.approx(28.8476522, abs=1e-6)
    assert list(errors.counts().values()) == [12, 25, 19, 31, 25, 5]
    costs = [1.0998, 10.3874, 5.6467, 3.0113, 6.0871, 3.4765]
    assert [100 * cost for cost in errors.costs().values()] == pytest.approx(
        costs, abs=1e-4
    )


def test_the_better_of_two_errors_is_mended() -> None:
    """TIDE: an object becomes one hit, whatever the kinds of its errors."""
    found = PLANTED['Cls'] + PLANTED['Loc'] + perfect()[1:]
    found[0]['score'] = 0.5  # the Loc error is the better one
    _, errors = analyse(truth_of(OBJECTS), found)
    assert errors.detections['repairs'].tolist().count(True) == 1
    assert errors.detections.query('repairs')['kind'].tolist() == ['Loc']
    assert errors.counts() == {**dict.fromkeys(KINDS, 0), 'Cls': 1, 'Loc': 1}


@pytest.mark.parametrize('seed', range(3))
def test_ap_is_that_of_pycocotools(seed: int) -> None:
    objects, found = noisy(seed)
    truth = truth_of(objects, num_images=12)
    truth.coco.dataset['annotations'][0]['iscrowd'] = 1
    ap, errors = analyse(truth, found)
    evaluator = COCOeval(truth.coco, load(truth, found), 'bbox')
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert 0.05 < ap[0, 0] < 0.95
    np.testing.assert_allclose(ap[0], evaluator.stats[:6], atol=1e-12)
    # Each detection that counts is a hit or one of the errors.
    kinds = errors.detections['kind']
    assert ((kinds == '') == errors.detections['hit']).all()
    assert min(errors.counts()[kind] for kind in ('Cls', 'Loc', 'Dupe')) > 0


def test_an_image_that_is_drawn_twice_counts_twice() -> None:
    objects, found = noisy(num_images=4)
    for number, each in enumerate(found):
        each['score'] += number / 1e6  # no two are equal
    truth = truth_of(objects, num_images=4)
    matched = match(truth, load(truth, found))
    resampled = class_ap(precision_curves(matched, [0, 0, 2, 3]))
    # The second image becomes a copy of the first one.
    objects = [each for each in objects if each[0] != 2]
    objects += [(2, *rest) for image, *rest in objects if image == 1]
    found = [each for each in found if each['image_id'] != 2]
    found += [{**x, 'image_id': 2} for x in found if x['image_id'] == 1]
    truth = truth_of(objects, num_images=4)
    matched = match(truth, load(truth, found))
    copied = class_ap(precision_curves(matched))
    np.testing.assert_allclose(resampled, copied, atol=1e-12)


def test_intervals_contain_the_estimate() -> None:
    objects, found = noisy()
    truth = truth_of(objects, num_images=12)
    matched = match(truth, load(truth, found))
    samples = bootstrap(matched, 50)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    point = with_mean(class_ap(precision_curves(matched)))
    known = ~np.isnan(point)
    assert known.sum() == 18  # all but the birds
    assert ((low <= point) & (point <= high))[known].all()
    assert (high - low)[0, 0] > 0.01
    np.testing.assert_array_equal(bootstrap(matched, 50), samples)


def test_confusions() -> None:
    truth = truth_of(OBJECTS)
    found = PLANTED['Cls'] + perfect()[2:]  # the dog of image 1 is missed
    found += [PLANTED['Bkg'][1], detection(1, 1, DOG, 0.2)]
    confident = find_confident(truth, {'a': load(truth, found)}, 0.3)['a']
    assert confusion_matrix(confident, list(truth.classes)).tolist() == [
        [2, 1, 0, 0],
        [0, 2, 0, 1],
        [0, 0, 0, 0],
        [0, 1, 0, 0],
    ]


@pytest.mark.parametrize(
    ('scores', 'hits', 'error'),
    [
        ([0.75] * 4, [True, True, True, False], 0),
        ([0.95] * 4, [False] * 4, 0.95),
        ([1.0, 0.0], [True, False], 0),
        ([0.25, 0.25, 0.85], [False, False, True], (2 * 0.25 + 0.15) / 3),
    ],
)
def test_calibration_error(
    scores: list[float], hits: list[bool], error: float
) -> None:
    table = pd.DataFrame({'score': scores, 'hit': hits})
    assert calibration_error(table) == pytest.approx(error)
