# SPDX-License-Identifier: Apache-2.0
"""mmdet's COCO data set and metric, for data as they come."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.logging import print_log

from lors_det.datasets.annotations import (
    NOT_POSITIVE,
    check_annotations,
    check_classes,
    read_annotations,
)
from lors_det.datasets.defects import ANSWERS, Defects, printable
from lors_det.datasets.images import OTHER_SIZE, UNUSABLE, checked_pipeline
from lors_det.errors import UsageError

#: Defects of image files that are met while training or testing; the codes in
#: `CheckedCocoDataset.image_defect_codes` are places in it.
IMAGE_DEFECTS = ('', *UNUSABLE, OTHER_SIZE)
#: Images whose files are looked for when a run starts.
NUM_PROBES = 20


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that says what is wrong with the data.

    The annotation file is checked when it is read. What cannot be used is
    refused there, or left out and reported, one line for each kind.
    ``docs/data.md`` lists the kinds; on data without defects this is mmdet's
    data set. Images are checked when they are needed: in training one that
    cannot be used is replaced by another, in testing it stands as a black
    image whose detections `CheckedCocoMetric` drops. `DefectsHook` reports
    them.

    Args:
        pipeline: As in mmdet; ``LoadImageFromFile`` becomes
            `LoadCheckedImage`.
        kwargs: As in mmdet.

    Raises:
        UsageError: If the annotation file cannot be used, or no image of it
            is there.
    """

    def __init__(
        self, *args: Any, pipeline: Sequence[Any] = (), **kwargs: Any
    ) -> None:
        self.annotation_defects = Defects()
        # (images,); workers write to it.
        self.image_defect_codes = torch.zeros(0, dtype=torch.uint8)
        super().__init__(*args, pipeline=checked_pipeline(pipeline), **kwargs)

    def COCOAPI(self, path: str) -> COCO:
        """Read and check the annotation file.

        Named as mmdet names its reader, which this stands for.

        Args:
            path: The local file.

        Returns:
            The annotations that can be used, with their index.

        Raises:
            UsageError: If something in the file is refused.
        """
        content = read_annotations(path, self.ann_file)
        check_classes(content, self.metainfo['classes'], self.ann_file)
        self.annotation_defects = check_annotations(
            content, (self.filter_cfg or {}).get('min_size', 0)
        )
        self.annotation_defects.raise_refused(self.ann_file)
        log_defects(self.annotation_defects, self.ann_file)
        return _indexed(content)

    def filter_data(self) -> list[dict[str, Any]]:
        """Leave out the images that ``filter_cfg`` does not want.

        Returns:
            The entries of the others.

        Raises:
            UsageError: If none is left.
        """
        kept = super().filter_data()
        if not kept:
            raise UsageError(
                f'{self.ann_file}: no image is left of {len(self.data_list)}: '
                f'check metainfo.classes and filter_cfg={self.filter_cfg}'
            )
        return kept

    def full_init(self) -> None:
        """Read the annotations and look for a few images.

        Raises:
            UsageError: If the annotations are refused, or none of the images
                that are looked for is there.
        """
        if self._fully_initialized:
            return
        super().full_init()
        self.image_defect_codes = torch.zeros(len(self), dtype=torch.uint8)
        self.image_defect_codes.share_memory_()
        if self.backend_args or '://' in self.data_prefix.get('img', ''):
            return  # not in the file system
        paths = [
            self.get_data_info(index)['img_path']
            for index in range(0, len(self), -(-len(self) // NUM_PROBES))
        ]
        if not any(map(os.path.exists, paths)):
            raise UsageError(
                f'{self.ann_file}: none of {len(paths)} images looked for is '
                f'there, like {printable(paths[0])}: check data_prefix.img'
            )

    def prepare_data(self, idx: int) -> Any:
        """Return one image after the pipeline.

        Args:
            idx: From 0.

        Returns:
            The output of the pipeline; None in training, for another image to
            be taken, if this one cannot be used.
        """
        info = self.get_data_info(idx)
        info['keep_unusable'] = self.test_mode
        index = info['sample_idx']
        data = self.pipeline(info)
        defect = info.get('defect')
        if defect is None:
            return data
        if index < len(self.image_defect_codes):
            self.image_defect_codes[index] = IMAGE_DEFECTS.index(defect)
        if defect in UNUSABLE and self.test_mode:
            data['data_samples'].set_metainfo({'unreadable': defect})
        return data

    def image_defects(self) -> Defects:
        """Return the defects of image files met so far, by all workers.

        Returns:
            Ids of images, by kind.
        """
        defects = Defects()
        for index in self.image_defect_codes.nonzero().flatten().tolist():
            kind = IMAGE_DEFECTS[int(self.image_defect_codes[index])]
            defects.add(kind, self.get_data_info(index)['img_id'])
        return defects


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` that counts what `CheckedCocoDataset` uses.

    An annotation that has no proper numbers does not count; a missing area
    and ``iscrowd`` are filled in; ids that are not positive, which
    pycocotools takes for "unmatched", are replaced; an image that cannot be
    read counts as one without detections. Everything else is as in COCO's own
    evaluation.

    Args:
        kwargs: As in mmdet.
    """

    _coco_api: COCO | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._coco_api is not None:
            content = self._coco_api.dataset
            content.setdefault('annotations', [])
            if NOT_POSITIVE in check_annotations(content):
                for number, entry in enumerate(content['annotations'], 1):
                    entry['id'] = number
            self._coco_api = _indexed(content)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute the AP of all detections that are finite.

        pycocotools counts a box of NaN as a hit.

        Args:
            results: Ground truth and detections of every image.

        Returns:
            AP numbers by name.
        """
        num_dropped = sum(drop_non_finite(found) for _, found in results)
        if num_dropped:
            print_log(
                f'{num_dropped} detections are not finite and were dropped: '
                'the weights are not finite, or training diverged',
                logger='current',
                level=logging.WARNING,
            )
        metrics: dict[str, float] = super().compute_metrics(results)
        return metrics

    def process(
        self,
        data_batch: Mapping[str, Any],
        data_samples: Sequence[dict[str, Any]],
    ) -> None:
        """Take the detections of a batch.

        Args:
            data_batch: Not read.
            data_samples: Detections and meta data of every image; those of
                images that could not be read are emptied, for the metrics
                that come after this one too.
        """
        for sample in data_samples:
            if 'unreadable' in sample:
                detections = sample['pred_instances']
                for key in detections:
                    detections[key] = detections[key][:0]
        super().process(data_batch, data_samples)


def drop_non_finite(detections: dict[str, Any]) -> int:
    """Drop detections whose box or score is not finite.

    Args:
        detections: Of one image, as ``CocoMetric`` stores them: ``bboxes``
            (K, 4) and ``scores`` (K,), further entries of length K, and
            ``img_id``. Changed in place.

    Returns:
        How many were dropped.
    """
    finite = np.isfinite(detections['bboxes']).all(1)
    finite &= np.isfinite(detections['scores'])
    if not finite.all():
        for key in detections.keys() - {'img_id'}:
            values = detections[key]
            detections[key] = (
                values[finite]
                if isinstance(values, np.ndarray)
                else list(compress(values, finite))  # masks
            )
    return int((~finite).sum())


def log_defects(defects: Defects, name: str) -> None:
    """Write one line for each kind of defect to the log.

    Args:
        defects: What is wrong.
        name: The annotation file.
    """
    for kind in defects:
        used = ANSWERS[kind].startswith('used')
        print_log(
            f'{name}: {kind}, {ANSWERS[kind]}: {defects.summary(kind)}',
            logger='current',
            level=logging.INFO if used else logging.WARNING,
        )


def _indexed(content: dict[str, Any]) -> COCO:
    """Return annotations with pycocotools' index."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    # Other names of the same, which mmdet gives what it reads from a file.
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco
