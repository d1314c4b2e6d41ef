# SPDX-License-Identifier: Apache-2.0
"""The detector: each step once, in order."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from torch import Tensor

from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.adamixer.queries import InitialQueries
from lors_det.adamixer.settings import check_detector, check_fit


@MODELS.register_module()
class AdaMixer(BaseDetector):
    """AdaMixer, and LORS-AdaMixer where the decoder's stacks say so.

    Source: AdaMixer (arXiv:2203.16507); LORS (arXiv:2403.04303).

    train: images, backbone, neck, initial queries, decoder, criterion.
    predict: the same up to the decoder, then the top k of its last stage.

    Args:
        backbone: Config of the backbone.
        neck: Config of the neck, which gives C channels at every level.
        decoder: Config of the decoder (`AdaMixerDecoder`).
        num_queries: Number N of queries.
        criterion: Config of the loss (`SetCriterion`).
        train_cfg: Not read; there for mmdet's sake.
        test_cfg: ``max_per_img``, the detections kept per image; the number
            of queries if not given.
        data_preprocessor: Config of mmdet's ``DetDataPreprocessor``.
        init_cfg: mmengine's initialisation config.
        compile: Whether backbone, neck and decoder run compiled; or the
            options of ``torch.compile``, such as ``mode``.

    Raises:
        TypeError: If a setting has a wrong type or an unknown name.
        ValueError: If a value is not possible, or neck and decoder do not fit.
    """

    def __init__(
        self,
        backbone: ConfigType,
        neck: ConfigType,
        decoder: ConfigType,
        num_queries: int,
        criterion: ConfigType,
        train_cfg: OptConfigType = None,
        test_cfg: OptConfigType = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        super().__init__(
            data_preprocessor=data_preprocessor, init_cfg=init_cfg
        )
        test_cfg = {} if test_cfg is None else test_cfg
        check_detector(num_queries, test_cfg, compile)
        self.max_per_img = test_cfg.get('max_per_img', num_queries)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.decoder = MODELS.build(decoder)
        check_fit(self.neck, self.decoder)
        self.queries = InitialQueries(num_queries, self.decoder.embed_dims)
        self.criterion = MODELS.build(criterion)
        if compile is not False:
            self._compile_parts({} if compile is True else compile)

    def _compile_parts(self, options: Mapping[str, Any]) -> None:
        """Compile all but the criterion, whose matching is not a graph."""
        try:
            for part in (self.backbone, self.neck):
                part.compile(**options)
            self.decoder.compile(**{'fullgraph': True, **options})
        except Exception as error:  # torch has many for wrong options
            raise ValueError(
                f'model.compile={options!r}: expected options of '
                f'torch.compile; {shorten(str(error), 200)}'
            ) from error

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            batch_inputs: (B, 3, H, W) normalised and padded images.

        Returns:
            One (B, C, H_l, W_l) per level.

        Raises:
            ValueError: If number or stride of the levels are not those that
                the decoder expects.
        """
        feats: tuple[Tensor, ...] = self.neck(self.backbone(batch_inputs))
        strides = self.decoder.strides
        if len(feats) != len(strides):
            raise ValueError(
                f'decoder.strides={list(strides)}: the neck gives '
                f'{len(feats)} levels, expected one stride for each'
            )
        size = tuple(batch_inputs.shape[-2:])
        for level, (feat, stride) in enumerate(
            zip(feats, strides, strict=True)
        ):
            found = tuple(feat.shape[-2:])
            if any(
                abs(cells * stride - side) >= stride
                for cells, side in zip(found, size, strict=True)
            ):
                raise ValueError(
                    f'decoder.strides[{level}]={stride}: level {level} of '
                    f'the neck is {found} for an input of {size}, which is '
                    f'stride {round(size[0] / found[0])}'
                )
        return feats

    def decode(
        self, batch_inputs: Tensor, image_sizes: Tensor
    ) -> list[StageOutput]:
        """Backbone, neck, initial queries, decoder.

        Args:
            batch_inputs: (B, 3, H, W) normalised and padded images.
            image_sizes: (B, 2) width and height in pixels of the resized,
                un-padded images.

        Returns:
            What every stage predicts, first to last.
        """
        feats = self.extract_feat(batch_inputs)
        content, xyzr = self.queries(image_sizes)
        return self.decoder(feats, content, xyzr)

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch_inputs: (B, 3, H, W) normalised and padded images.
            batch_data_samples: Boxes, labels and meta data of every image.

        Returns:
            See `SetCriterion.forward`.
        """
        image_sizes = sizes_of(batch_inputs, batch_data_samples)
        instances = [sample.gt_instances for sample in batch_data_samples]
        return self.criterion(
            self.decode(batch_inputs, image_sizes),
            [instance.bboxes for instance in instances],
            [instance.labels for instance in instances],
            image_sizes,
        )

    def predict(
        self,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
        rescale: bool = True,
    ) -> SampleList:
        """Detections of a batch.

        Args:
            batch_inputs: (B, 3, H, W) normalised and padded images.
            batch_data_samples: Meta data of every image.
            rescale: Whether boxes are in pixels of the original images, or
                of the resized ones.

        Returns:
            The samples with ``pred_instances``: ``scores``, ``labels`` and
            ``bboxes`` (x1, y1, x2, y2), by descending score.
        """
        image_sizes = sizes_of(batch_inputs, batch_data_samples)
        last = self.decode(batch_inputs, image_sizes)[-1]
        factors = None
        if rescale:
            factors = [
                sample.get('scale_factor', (1.0, 1.0))
                for sample in batch_data_samples
            ]
        results = to_instances(*select_topk(last, self.max_per_img), factors)
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple[Tensor, Tensor]:
        """Raw predictions of the last stage, for tracing and counting.

        Args:
            batch_inputs: (B, 3, H, W) normalised and padded images.
            batch_data_samples: Meta data of every image; without it images
                are taken to fill the batch.

        Returns:
            (B, N, num_classes) logits and (B, N, 4) boxes in pixels.
        """
        image_sizes = sizes_of(batch_inputs, batch_data_samples)
        last = self.decode(batch_inputs, image_sizes)[-1]
        return last.cls_logits, last.bboxes


def sizes_of(batch_inputs: Tensor, samples: OptSampleList) -> Tensor:
    """Width and height of the images of a batch, without their padding.

    Args:
        batch_inputs: (B, 3, H, W).
        samples: Samples with ``img_shape`` (height, width), or None for
            images that fill the batch.

    Returns:
        (B, 2) in pixels, at least float32.
    """
    height, width = batch_inputs.shape[-2:]
    shapes = (
        [(height, width)] * len(batch_inputs)
        if samples is None
        else [sample.img_shape[:2] for sample in samples]
    )
    return torch.tensor(
        [(w, h) for h, w in shapes],
        dtype=torch.promote_types(batch_inputs.dtype, torch.float32),
        device=batch_inputs.device,
    )
