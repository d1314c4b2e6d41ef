# SPDX-License-Identifier: Apache-2.0
"""A trained detector on images, videos and cameras."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
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
from mmengine.device import get_device
from mmengine.registry import init_default_scope
from PIL import Image
from torch import Tensor

from lors_det.cli.boundary import suggest
from lors_det.cli.launch import load_config
from lors_det.datasets.images import LoadCheckedImage
from lors_det.errors import UsageError
from lors_det.hooks.checkpoint import load_strictly
from lors_det.media import Frame, Skip, read_frames
from lors_det.safe_load import load_checkpoint

#: Of a table of detections: name of the image or video, number of the frame in
#: the video, class, score, and box in pixels of the image.
COLUMNS = (
    'file', 'frame', 'label', 'class', 'score', 'x1', 'y1', 'x2', 'y2',
)  # fmt: skip


class Predictor:
    """A detector with its weights, the pipeline of its tests, and its classes.

    Args:
        config: The config, or its file.
        checkpoint: Its weights.
        device: As in torch, ``'cpu'`` or ``'cuda:0'``; the best one that is
            there if not given.
        trust: Whether the checkpoint may run code while it is loaded.

    Attributes:
        classes: Names of the classes.
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
    ) -> None:
        cfg = (
            config if isinstance(config, Config) else load_config(str(config))
        )
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        self.device = _check_device(device or get_device())
        found = load_checkpoint(checkpoint, trust=trust)
        self.model: Any = MODELS.build(cfg.model)
        load_strictly(self.model, found, str(checkpoint), 'test')
        self.model.to(self.device).eval()
        self.classes = _classes(found.get('meta'), cfg)
        load, *others = get_test_pipeline_cfg(cfg.copy())
        self._load = LoadCheckedImage(
            **{key: value for key, value in load.items() if key != 'type'}
        )
        self._prepare = Compose(
            [{**load, 'type': 'mmdet.LoadImageFromNDArray'}, *others]
        )

    def __call__(
        self, inputs: Any, batch_size: int = 1
    ) -> list[DetDataSample]:
        """Detect on all inputs.

        Args:
            inputs: See `stream`.
            batch_size: See `stream`.

        Returns:
            A sample of mmdet per frame; see `stream`.
        """
        return [sample for _, sample in self.stream(inputs, batch_size)]

    def stream(
        self, inputs: Any, batch_size: int = 1, skip: Skip | None = None
    ) -> Iterator[tuple[Frame, DetDataSample]]:
        """Detect frame by frame, and hold no more of them than a batch.

        Args:
            inputs: One or an iterable of: files of images or videos, folders,
                globs, numbers of cameras, PIL images, arrays (H, W, 3) uint8
                in the order blue, green, red.
            batch_size: Frames that run together.
            skip: Called with name, reason and number of frames for all that
                cannot be decoded; if not given, that is an error.

        Yields:
            The frame, and its sample on the CPU. ``pred_instances`` has
            ``bboxes`` (N, 4), x1, y1, x2, y2 in pixels of the frame, not
            clipped to it, ``scores`` (N,) and ``labels`` (N,), by descending
            score. ``img_path`` is the frame's name, ``frame`` its number.

        Raises:
            UsageError: If an input is not there, or cannot be decoded.
            ValueError: If an array is no image.
        """
        one = isinstance(inputs, (str, int, PathLike, np.ndarray, Image.Image))
        frames = read_frames(
            [inputs] if one else inputs, self._load, skip or _refuse
        )
        while batch := list(islice(frames, batch_size)):
            samples = self._detect([frame.image for frame in batch])
            for sample in samples:
                frame = batch.pop(0)  # or two batches are held while one grows
                sample.set_metainfo(
                    {'img_path': frame.name, 'frame': frame.number}
                )
                yield frame, sample
                del frame

    def run(
        self, inputs: list[Tensor], samples: list[DetDataSample]
    ) -> list[DetDataSample]:
        """Detect on prepared images; the one place where the model runs.

        Args:
            inputs: (3, H, W) each, all of one size, not normalised.
            samples: Meta data of every image.

        Returns:
            The samples with ``pred_instances``, boxes in pixels of the
            original images.
        """
        batch = {'inputs': inputs, 'data_samples': samples}
        with torch.no_grad():
            return self.model.test_step(batch)

    def select(
        self, sample: DetDataSample, score: float, labels: Iterable[int] = ()
    ) -> DetDataSample:
        """Return a sample with some of its detections.

        Args:
            sample: The sample.
            score: The lowest score that is kept.
            labels: Those that are kept; all if there is none.
        """
        found = sample.pred_instances
        keep = found.scores >= score
        if labels:
            keep &= torch.isin(found.labels, torch.tensor([*labels]))
        selected = sample.new()
        selected.pred_instances = found[keep]
        return selected

    def labels_of(self, names: Iterable[str]) -> list[int]:
        """Return the labels of classes.

        Args:
            names: Of the classes.

        Raises:
            UsageError: If the model does not know a class.
        """
        for name in names:
            if name not in self.classes:
                raise UsageError(
                    f'--classes {name}: the model does not know this class'
                    f'{suggest(name, self.classes)}'
                )
        return [self.classes.index(name) for name in names]

    def rows(self, sample: DetDataSample) -> Iterator[dict[str, Any]]:
        """Yield the detections of a sample as rows of a table.

        Args:
            sample: Of this predictor.
        """
        found = sample.pred_instances
        columns = found.labels, found.scores, found.bboxes
        for label, score, box in zip(
            *(c.tolist() for c in columns), strict=True
        ):
            yield {
                'file': sample.get('img_path'),
                'frame': sample.get('frame'),
                'label': label,
                'class': self.classes[label],
                'score': score,
                **dict(zip(('x1', 'y1', 'x2', 'y2'), box, strict=True)),
            }

    def to_table(
        self, samples: DetDataSample | Iterable[DetDataSample]
    ) -> pd.DataFrame:
        """Return the detections of samples as a pandas table.

        Args:
            samples: One or more, of this predictor.

        Returns:
            A row per detection, with `COLUMNS`.
        """
        if isinstance(samples, DetDataSample):
            samples = [samples]
        return pd.DataFrame(
            [row for sample in samples for row in self.rows(sample)],
            columns=COLUMNS,
        )

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

    def _detect(self, images: Sequence[Any]) -> list[DetDataSample]:
        """Detect on a batch, those of one size together.

        Padding changes the detections a little: what an image gives must not
        depend on the others.
        """
        prepared = [
            self._prepare({'img': each, 'img_id': 0}) for each in images
        ]
        by_size = dict[Any, list[int]]()
        for index, each in enumerate(prepared):
            by_size.setdefault(each['inputs'].shape, []).append(index)
        results = dict[int, DetDataSample]()
        for group in by_size.values():
            samples = self.run(
                [prepared[index]['inputs'] for index in group],
                [prepared[index]['data_samples'] for index in group],
            )
            for index, sample in zip(group, samples, strict=True):
                results[index] = sample.cpu()
        return [results[index] for index in range(len(images))]


def _refuse(name: str, reason: str, frames: int) -> None:
    raise UsageError(f'{name}: {reason}')


def _check_device(name: str) -> str:
    """Return the name of a device that is there."""
    try:
        torch.zeros(1, device=name)
    except Exception:  # each kind of device has its own
        there = ['cpu']
        there += [f'cuda:{n}' for n in range(torch.cuda.device_count())]
        raise UsageError(
            f'--device {name}: is not there; expected one of {there}'
        ) from None
    return name


def _classes(meta: Any, cfg: Config) -> list[str]:
    """Return the names of the classes: the checkpoint's, else the config's."""
    meta = meta if isinstance(meta, dict) else {}
    named = {
        k.lower(): v for k, v in (meta.get('dataset_meta') or meta).items()
    }
    if not named.get('classes'):
        dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True}
        named = DATASETS.build(dataset).metainfo
    return [str(name) for name in named['classes']]
