# SPDX-License-Identifier: Apache-2.0
"""mmdet's COCO data set and metric, for data with defects."""

from __future__ import annotations

from lors_det.compat import quiet  # noqa: F401  # before others import mmdet

# isort: split
import io
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.structures import InstanceData

from lors_det.datasets.annotations import (
    NOT_POSITIVE,
    check_annotations,
    check_classes,
    read_annotations,
)
from lors_det.datasets.defects import Defects, printable
from lors_det.datasets.images import OTHER_SIZE, UNUSABLE, checked_pipeline
from lors_det.errors import UsageError

#: Defects of image files that are found while training or testing, by their
#: code in `CheckedCocoDataset.image_defect_codes`.
IMAGE_DEFECTS = ('', *UNUSABLE, OTHER_SIZE)
#: Images whose files are looked for when a run starts.
NUM_PROBES = 20


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's ``CocoDataset`` that says what is wrong with the data.

    The annotation file is checked when it is read: defects are refused, or
    left out and reported, one line for each kind (``docs/data.md``). Images
    are checked when they are loaded: one that cannot be used is replaced by
    another in training, and in testing by a black image, whose detections
    `CheckedCocoMetric` drops. `DefectsHook` reports them. On data without
    defects this is mmdet's data set.

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
        super().__init__(*args, pipeline=checked_pipeline(pipeline), **kwargs)

    def COCOAPI(self, path: str) -> COCO:
        """Read and check the annotation file, where mmdet only reads it.

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
        self.annotation_defects.log(self.ann_file)
        self.num_boxes = len(content['annotations'])
        return _indexed(content)

    def filter_data(self) -> list[dict[str, Any]]:
        """Leave out images as ``filter_cfg`` says.

        Returns:
            The records of the others.

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
        # (images,); workers write to it.
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
        index, info['keep_unusable'] = info['sample_idx'], self.test_mode
        data = self.pipeline(info)
        defect = info.get('defect')
        if defect is None:
            return data
        self.image_defect_codes[index] = IMAGE_DEFECTS.index(defect)
        if defect in UNUSABLE and self.test_mode:
            data['data_samples'].set_metainfo({'unreadable': defect})
        return data

    def image_defects(self) -> Defects:
        """Return the ids of images whose files have defects.

        Those are known that any worker has loaded.
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
    read counts as one without detections; detections that are not finite,
    which pycocotools counts as hits, are dropped. Everything else is as in
    COCO's own evaluation.

    Args:
        kwargs: As in mmdet.
    """

    _coco_api: COCO | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with redirect_stdout(io.StringIO()):  # 'creating index...'
            super().__init__(*args, **kwargs)
        self._num_dropped = 0
        if self._coco_api is not None:
            content = self._coco_api.dataset
            content.setdefault('annotations', [])
            if NOT_POSITIVE in check_annotations(content):
                for number, entry in enumerate(content['annotations'], 1):
                    entry['id'] = number
            self._coco_api = _indexed(content)

    def process(
        self,
        data_batch: Mapping[str, Any],
        data_samples: Sequence[dict[str, Any]],
    ) -> None:
        """Take the detections of a batch.

        Args:
            data_batch: Not read.
            data_samples: Detections and meta data of every image. Detections
                that do not count are removed, also for later metrics.
        """
        for sample in data_samples:
            found = sample['pred_instances']
            keep = found['bboxes'].isfinite().all(1)
            keep &= found['scores'].isfinite()
            self._num_dropped += int((~keep).sum())
            if 'unreadable' in sample:
                keep[:] = False
            if not keep.all():
                found.update(InstanceData(**found)[keep].items())
        super().process(data_batch, data_samples)

    def evaluate(self, size: int) -> dict[str, float]:
        """Compute the AP of all detections.

        Args:
            size: Number of images.

        Returns:
            AP numbers by name.
        """
        num_dropped = torch.tensor(self._num_dropped)
        all_reduce(num_dropped)
        self._num_dropped = 0
        if num_dropped:
            print_log(
                f'{num_dropped} detections are not finite and were dropped: '
                'the weights are not finite, or training diverged',
                logger='current',
                level=logging.WARNING,
            )
        printed = io.StringIO()
        with redirect_stdout(printed):
            metrics: dict[str, float] = super().evaluate(size)
        table = [
            line
            for line in printed.getvalue().splitlines()
            if 'Average' in line
        ]
        if table:
            print_log('\n'.join(table), logger='current')
        return metrics


def _indexed(content: dict[str, Any]) -> COCO:
    """Return annotations with pycocotools' index."""
    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):  # 'creating index...'
        coco.createIndex()
    # mmdet's names of the same.
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco
