# SPDX-License-Identifier: Apache-2.0
"""The metric is mmdet's, but for what no metric should count."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_coco import change, evaluate, found_in, logged, spoil
from mmdet.evaluation import CocoMetric

from lors_det.datasets.coco import CheckedCocoMetric


def score(kind: type[CocoMetric], root: Path, samples: Any = None) -> Any:
    metric = kind(ann_file=str(root / 'ann.json'))
    return evaluate(metric, samples or found_in(range(1, 5)))


def test_it_is_mmdets_metric_where_the_id_0_counts(root: Path) -> None:
    """pycocotools takes what is matched to it for unmatched."""
    expected = score(CocoMetric, root)
    assert expected['coco/bbox_mAP_50'] > 0
    assert score(CheckedCocoMetric, root) == expected
    spoil(root, *(change('annotations', i, id=i) for i in range(8)))
    assert score(CheckedCocoMetric, root) == expected
    assert score(CocoMetric, root) != expected


def test_unreadable_images_have_no_detections(root: Path) -> None:
    metric = CheckedCocoMetric(ann_file=str(root / 'ann.json'))
    samples = found_in([1, 2])
    samples[0]['unreadable'] = 'missing image'
    metric.process({}, samples)
    assert [len(found['bboxes']) for _, found in metric.results] == [0, 5]
    assert len(samples[0]['pred_instances']['scores']) == 0


@pytest.mark.parametrize('key', ['bboxes', 'scores'])
@pytest.mark.parametrize('extra', [math.nan, math.inf, -math.inf, 1.0])
def test_what_is_not_finite_is_dropped_and_counted(
    key: str, extra: float, root: Path
) -> None:
    def samples() -> list[dict[str, Any]]:
        """One more detection in each of four images."""
        result = found_in(range(1, 5))
        for sample in result:
            found = sample['pred_instances']
            for name, value in found.items():
                found[name] = torch.cat([value, value[:1]])
            found[key][-1] = extra
        return result

    with logged() as records:
        found = score(CheckedCocoMetric, root, samples())
    lines = [r.getMessage() for r in records]
    dropped = [line.split()[0] for line in lines if 'not finite' in line]
    if extra == 1.0:  # a finite one counts as it does in mmdet
        assert found == score(CocoMetric, root, samples())
        assert not dropped
    else:
        assert found == score(CocoMetric, root)
        assert dropped == ['4']


def test_masks_go_with_their_boxes(root: Path) -> None:
    metric = CheckedCocoMetric(ann_file=str(root / 'ann.json'))
    (sample,) = found_in([1])
    found = sample['pred_instances']
    found['bboxes'][1, 2] = math.nan
    found['masks'] = list('abcde')
    metric.process({}, [sample])
    assert found['masks'] == list('acde')
    assert found['bboxes'].shape == (4, 4)
