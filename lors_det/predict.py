# SPDX-License-Identifier: Apache-2.0
"""A trained detector on images, videos and cameras."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import torch
from mmcv.transforms import Compose
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from PIL import Image

from lors_det.datasets.images import LoadCheckedImage
from lors_det.deploy.exported import (
    check_exported_options,
    exported_config,
    is_exported,
)
from lors_det.errors import UsageError
from lors_det.files import load_config
from lors_det.hooks.checkpoint import load_strictly
from lors_det.media import Frame, Skip, read_frames
from lors_det.precision import predict_in
from lors_det.safe_load import load_checkpoint


class Predictor:
    """A detector with its weights, its test pipeline and its classes.

    Args:
        config: The config, or its file.
        checkpoint: Its weights, or a file that tools/export.py wrote.
        device: As in torch, ``'cpu'`` or ``'cuda:0'``; the best one that is
            there if not given. Exported files run on the CPU.
        trust: Whether the checkpoint may run code while it is loaded.
        dtype: Type to compute in: ``float32``, ``float16``, ``bfloat16``.
            Exported files have their own.

    Attributes:
        classes: Names of the classes, by label.
        config: A copy of the config.
        model: The detector.

    Raises:
        UsageError: If a file cannot be read, the checkpoint is of another
            config, or the device is not there.
    """

    def __init__(
        self,
        config: str | PathLike[str] | Config,
        checkpoint: str | PathLike[str],
        device: str | None = None,
        trust: bool = False,
        dtype: str = 'float32',
    ) -> None:
        cfg = config
        if not isinstance(cfg, Config):
            cfg = load_config(str(cfg))
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.config = copy.deepcopy(cfg)  # to build a model may change it
        self.model: Any
        if is_exported(checkpoint):
            check_exported_options(device, dtype)
            self.model = MODELS.build(exported_config(cfg, checkpoint, trust))
            self.classes = self.model.meta['classes']
        else:
            device = device or get_device()
            check_device(device)
            found = load_checkpoint(checkpoint, trust=trust)
            self.model = MODELS.build(cfg.model)
            load_strictly(self.model, found, str(checkpoint), 'test')
            self.model.to(device).eval()
            predict_in(self.model, dtype, device)
            self.classes = _classes(found.get('meta') or {}, cfg)
        load, *others = get_test_pipeline_cfg(cfg.copy())
        settings = {key: load[key] for key in load if key != 'type'}
        self._loader = LoadCheckedImage(**settings)
        self._prepare = Compose(
            [{'type': 'mmdet.LoadImageFromNDArray', **settings}, *others]
        )

    def __call__(
        self, inputs: Any, batch_size: int = 1
    ) -> list[DetDataSample]:
        """Return the samples of `stream`, which has the same arguments."""
        return [sample for _, sample in self.stream(inputs, batch_size)]

    def stream(
        self, inputs: Any, batch_size: int = 1, skip: Skip | None = None
    ) -> Iterator[tuple[Frame, DetDataSample]]:
        """Detect frame by frame, and hold no more of them than a batch.

        Args:
            inputs: One, or an iterable, of: files of images and videos,
                folders, globs, numbers of cameras, PIL images, arrays
                (H, W, 3) uint8 in the order blue, green, red.
            batch_size: Images that run together, where they have one size.
            skip: Called with name, reason and number of frames for what
                cannot be decoded; an error if not given.

        Yields:
            The frame, and its sample on the CPU: ``pred_instances`` with
            ``bboxes`` (N, 4), x1, y1, x2, y2 in pixels of the frame, not
            clipped to it, ``scores`` (N,) and ``labels`` (N,), by descending
            score; ``img_path`` is the frame's name, ``frame`` its number.

        Raises:
            UsageError: If an input is not there, or cannot be decoded.
            ValueError: If an array is no image.
        """
        if isinstance(inputs, (str, int, PathLike, np.ndarray, Image.Image)):
            inputs = [inputs]
        frames = read_frames(inputs, self._loader, skip or _refuse)
        while batch := list(islice(frames, batch_size)):
            prepared = [
                self._prepare({'img': frame.image, 'img_id': 0})
                for frame in batch
            ]
            samples = list[DetDataSample]()
            # Padding changes detections a little: they must not depend on
            # the other images of a batch.
            for _, group in groupby(prepared, lambda p: p['inputs'].shape):
                samples += self.run(pseudo_collate([*group]))
            del prepared
            for sample in samples:
                frame = batch.pop(0)  # so that it can be freed
                sample.set_metainfo(
                    {'img_path': frame.name, 'frame': frame.number}
                )
                yield frame, sample.cpu()
                del frame

    def run(self, batch: dict[str, Any]) -> list[DetDataSample]:
        """Detect on a prepared batch; the one place where the model runs.

        Args:
            batch: ``inputs``, (3, H, W) each, of one size, not normalised;
                ``data_samples``, their meta data.

        Returns:
            The samples with ``pred_instances``; boxes are in pixels of the
            original images.
        """
        with torch.no_grad():
            return self.model.test_step(batch)

    def to_table(
        self, samples: DetDataSample | Iterable[DetDataSample]
    ) -> pd.DataFrame:
        """Return detections as a pandas table.

        Args:
            samples: One or more, of this predictor.

        Returns:
            A row per detection: ``file``; ``frame``, the number of the frame
            of a video; ``class``; ``score``; ``x1, y1, x2, y2`` in pixels.
        """
        if isinstance(samples, DetDataSample):
            samples = [samples]
        rows = [
            (sample.img_path, sample.frame, self.classes[label], score, *box)
            for sample in samples
            for label, score, box in zip(
                sample.pred_instances.labels.tolist(),
                sample.pred_instances.scores.tolist(),
                sample.pred_instances.bboxes.tolist(),
                strict=True,
            )
        ]
        columns = 'file frame class score x1 y1 x2 y2'.split()
        table = pd.DataFrame(rows, columns=columns)
        return table.astype({'frame': 'Int64'})

    def to_supervision(self, sample: DetDataSample) -> Any:
        """Return the detections of a sample as ``supervision.Detections``.

        Args:
            sample: Of this predictor.

        Raises:
            UsageError: If the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UsageError(
                'to_supervision needs the package supervision: '
                'pip install supervision'
            ) from None
        found = sample.pred_instances.numpy()
        names = [self.classes[label] for label in found.labels]
        return supervision.Detections(
            xyxy=found.bboxes,
            confidence=found.scores,
            class_id=found.labels,
            data={'class_name': np.array(names, dtype=str)},
        )


def _refuse(name: str, reason: str, frames: int) -> None:
    raise UsageError(f'{name}: {reason}')


def check_device(name: str) -> None:
    """Refuse a device that is not there.

    Args:
        name: As in torch, the value of an option ``--device``.

    Raises:
        UsageError: If torch cannot use it.
    """
    try:
        torch.zeros(1, device=name)
    except Exception:  # each kind of device has its own
        gpus = [f'cuda:{n}' for n in range(torch.cuda.device_count())]
        raise UsageError(
            f'--device {name}: is not there; expected one of {["cpu", *gpus]}'
        ) from None


def _classes(meta: dict[str, Any], cfg: Config) -> list[str]:
    """Return the checkpoint's class names; the config's if it has none."""
    named = {
        key.lower(): v for key, v in meta.get('dataset_meta', meta).items()
    }
    if not named.get('classes'):
        dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True}
        named = DATASETS.build(dataset).metainfo
    return [str(name) for name in named['classes']]
