# SPDX-License-Identifier: Apache-2.0
"""Compare an exported file with its detector, on photographs."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_iou

from lors_det.adamixer.detector import sizes_of
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.analysis.average_precision import class_ap, precision_curves
from lors_det.analysis.results import match
from lors_det.cli.analyse import read_truth
from lors_det.errors import UsageError
from lors_det.predict import Predictor

BATCHES = (1, 2, 5)
#: Sizes of the images, over that of the config.
SHARES = (1.0, 0.75)


class Limits(NamedTuple):
    """Bounds on the difference of an exported file and its detector.

    Args:
        logits: Largest difference of 99 of 100; ten times that of any. Late
            stages amplify the rounding of float32: on some queries torch
            itself is more than 1e-4 away from torch in float64.
        scores: Largest difference of a detection's score.
        iou: Smallest overlap of a detection's boxes.
        ap: Largest difference in points.
    """

    logits: float
    scores: float
    iou: float
    ap: float


#: By the type of the weights.
LIMITS = {
    'float32': Limits(1e-4, 2e-3, 0.999, 0.05),
    'float16': Limits(2e-2, 1e-2, 0.99, 0.2),
    'int8': Limits(0.5, 0.2, 0.5, 1),
}


class Finding(NamedTuple):
    """One comparison.

    Args:
        what: The images.
        text: How far the two are from each other.
        passed: Whether that is within the limits.
    """

    what: str
    text: str
    passed: bool


class Reference:
    """A detector in torch, to compare exported files with.

    Args:
        predictor: The detector; its config's validation images are used.

    Raises:
        UsageError: If these cannot be used, or are fewer than 5.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        cfg = copy.deepcopy(predictor.config)
        cfg.test_dataloader = cfg.get('val_dataloader')
        self.truth = read_truth(cfg)
        ids = sorted(self.truth.coco.imgs)
        self.images = {self.truth.image_path(each): each for each in ids}
        if len(ids) < max(BATCHES):
            raise UsageError(
                f'--check: {self.truth.name} has {len(ids)} images, expected '
                f'{max(BATCHES)} or more'
            )

    @cached_property
    def ap(self) -> float:
        """The detector's AP on the validation images, in points."""
        return self.measure(self.predictor)

    def check(self, exported: Predictor) -> Iterator[Finding]:
        """Compare an exported file with the detector, finding by finding.

        Args:
            exported: The file.
        """
        limits = LIMITS[exported.model.meta['dtype']]
        for share in SHARES:
            for batch in BATCHES:
                yield self._compare(exported, batch, share, limits)
        ap = self.measure(exported)
        yield Finding(
            f'{len(self.images)} images',
            f'AP {ap:.2f}, in torch {self.ap:.2f}',
            abs(ap - self.ap) <= limits.ap,
        )

    def measure(self, predictor: Predictor) -> float:
        """Return COCO's AP on the validation images, in points.

        Args:
            predictor: What detects.
        """
        categories = {name: i for i, name in self.truth.classes.items()}
        table = predictor.to_table(predictor([*self.images], 4))
        results = [
            {
                'image_id': self.images[Path(file)],
                'category_id': categories[name],
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'score': score,
            }
            for file, _, name, score, x1, y1, x2, y2 in table.to_numpy()
        ]
        with redirect_stdout(io.StringIO()):
            detections = self.truth.coco.loadRes(results)
        ap = class_ap(precision_curves(match(self.truth, detections)))
        return float(100 * np.nanmean(ap[:, 0]))

    @torch.no_grad()
    def _compare(
        self, exported: Predictor, batch: int, share: float, limits: Limits
    ) -> Finding:
        """Compare on the first images, at a share of their size."""
        model = self.predictor.model
        paths = [*self.images][:batch]
        data = self._prepare(paths, share)
        images, samples = data['inputs'], data['data_samples']
        outputs = exported.model.outputs(images, samples)
        last = model.decode(images, sizes_of(images, samples))[-1]
        texts, passed = list[str](), True
        if 'logits' in outputs:
            errors = (outputs['logits'] - last.cls_logits).abs().flatten()
            most, worst = float(errors.quantile(0.99)), float(errors.max())
            texts.append(f'logits {most:.1e} (99 %), {worst:.1e} (all)')
            passed = most <= limits.logits and worst <= 10 * limits.logits
        ours = exported.model.select(outputs, samples)
        factors = [sample.scale_factor for sample in samples]
        best = select_topk(last, model.max_per_img)
        theirs = to_instances(*best, factors)
        pairs = zip(theirs, ours, strict=True)
        scores, ious = zip(*(_differ(*p, limits) for p in pairs), strict=True)
        texts += [f'scores {max(scores):.1e}', f'IoU {min(ious):.5f}']
        passed &= max(scores) <= limits.scores and min(ious) >= limits.iou
        size = ' x '.join(map(str, images.shape[:1:-1]))
        return Finding(f'batch {batch}, {size}', ', '.join(texts), passed)

    def _prepare(self, paths: list[Path], share: float) -> dict[str, Any]:
        """Prepare image files as the config does, but smaller."""
        steps = copy.deepcopy(get_test_pipeline_cfg(self.predictor.config))
        for step in steps:
            if step['type'].endswith('Resize'):
                step['scale'] = tuple(int(s * share) for s in step['scale'])
        prepare = Compose(steps)
        batch = [prepare({'img_path': str(p), 'img_id': 0}) for p in paths]
        return self.predictor.model.data_preprocessor(pseudo_collate(batch))


def _differ(
    a: InstanceData, b: InstanceData, limits: Limits
) -> tuple[float, float]:
    """Return the largest difference of scores and the smallest IoU.

    Each detection is compared with the one of its class that is most like
    it. Those that another order of equal scores may drop do not count.
    """
    a = a[a.scores > a.scores.min() + limits.scores]
    difference: Tensor = (a.scores[:, None] - b.scores).abs()
    iou = box_iou(a.bboxes, b.bboxes)
    unlike = difference + 1 - iou + 2.0 * (a.labels[:, None] != b.labels)
    nearest = unlike.argmin(1, keepdim=True)
    is_other = (b.labels[nearest[:, 0]] != a.labels)[:, None]
    scores = difference.gather(1, nearest) + is_other
    if not len(a):
        return 0.0, 1.0
    return float(scores.max()), float(iou.gather(1, nearest).min())
