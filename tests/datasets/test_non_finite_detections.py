# SPDX-License-Identifier: Apache-2.0
"""A diverged model does not get the AP of a good one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_coco
from mmdet.evaluation import CocoMetric
from mmengine.logging import MMLogger

from lors_det.datasets.coco import CheckedCocoMetric


def evaluate(
    kind: type[CocoMetric], root: Path, extra: float | None, key: str = ''
) -> Any:
    """AP of the true boxes, and of one more with a number of its own."""
    metric = kind(ann_file=str(root / 'ann.json'))
    metric.dataset_meta = {'classes': small_coco.CLASSES}
    for image in range(1, 5):
        found = {
            'bboxes': torch.tensor([[3.0, 4.0, 15.5, 14.0], [4, 4, 14, 14]]),
            'scores': torch.tensor([0.6, 0.5]),
            'labels': torch.tensor([0, 1]),
        }
        if extra is not None:
            found = {k: torch.cat([v, v[:1]]) for k, v in found.items()}
            found[key][-1] = extra
        sample = {'img_id': image, 'ori_shape': (30, 40)}
        metric.process({}, [{**sample, 'pred_instances': found}])
    return metric.evaluate(4)


@pytest.mark.parametrize('key', ['bboxes', 'scores'])
@pytest.mark.parametrize('extra', [math.nan, math.inf, -math.inf, 1.0])
def test_they_are_dropped_and_counted(
    key: str,
    extra: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    small_coco.write(tmp_path)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    found = evaluate(CheckedCocoMetric, tmp_path, extra, key)
    logger.removeHandler(caplog.handler)
    lines = [r.getMessage() for r in caplog.records]
    lines = [line for line in lines if 'not finite' in line]
    if extra == 1.0:  # a finite one counts as it does in mmdet
        assert found == evaluate(CocoMetric, tmp_path, extra, key)
        assert not lines
    else:
        assert found == evaluate(CocoMetric, tmp_path, None)
        assert [line.split()[0] for line in lines] == ['4']


def test_masks_go_with_their_boxes(tmp_path: Path) -> None:
    small_coco.write(tmp_path)
    metric = CheckedCocoMetric(ann_file=str(tmp_path / 'ann.json'))
    found = {
        'bboxes': torch.tensor([[0.0, 0, 1, 1], [0, 0, math.nan, 1]]),
        'scores': torch.ones(2),
        'labels': torch.zeros(2),
        'masks': ['kept', 'dropped'],
    }
    sample = {'img_id': 1, 'ori_shape': (30, 40), 'pred_instances': found}
    metric.process({}, [sample])
    assert found['masks'] == ['kept']
    assert found['bboxes'].shape == (1, 4)
