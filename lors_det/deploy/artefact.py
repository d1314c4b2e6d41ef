# SPDX-License-Identifier: Apache-2.0
"""Run exported files where a detector is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor

from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.detector import sizes_of
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.deploy.formats import (
    FORMATS,
    describe_preprocessing,
    import_extra,
)
from lors_det.deploy.runtime import (
    META_KEY,
    Detector,
    check_images,
    read_meta,
)
from lors_det.errors import UsageError
from lors_det.files import check_file, find_damage
from lors_det.safe_load import TRUST_FLAG

Array = np.ndarray[Any, Any]
#: From inputs to outputs, both by name.
Run = Callable[[dict[str, Array]], dict[str, Array]]


@MODELS.register_module()
class ExportedDetector(BaseModel):
    """An exported file, behind the interface of a detector that predicts.

    Args:
        artefact: The file, by whose ending its format is known.
        data_preprocessor: Of the config that it was exported from.
        trust: Whether the file may run code while it is loaded.

    Attributes:
        meta: What the file says about itself.

    Raises:
        UsageError: If the file cannot be used, or its runtime is missing.
    """

    def __init__(
        self,
        artefact: str,
        data_preprocessor: Any = None,
        trust: bool = False,
    ) -> None:
        super().__init__(data_preprocessor)
        self.artefact = artefact
        check_file(artefact, 'CHECKPOINT')
        load = {'.onnx': _load_onnx, '.xml': _load_openvino}
        try:
            if artefact.endswith('.pt2'):
                self.meta, self._run = _load_torch(artefact, trust)
            else:
                self.meta, self._run = load[Path(artefact).suffix](artefact)
        except ValueError as error:
            raise UsageError(str(error)) from None

    def forward(
        self, inputs: Tensor, data_samples: SampleList, mode: str = 'predict'
    ) -> SampleList:
        """Detect on a prepared batch.

        Args:
            inputs: (B, 3, H, W) normalised and padded images.
            data_samples: Meta data of every image.
            mode: ``predict``; an exported file has no other.

        Returns:
            The samples with ``pred_instances``, as `AdaMixer.predict`.

        Raises:
            UsageError: If the images have a size that the file cannot take,
                or the mode is another.
        """
        if mode != 'predict':
            raise UsageError(f'{self.artefact}: is exported, and only detects')
        factors = [sample.scale_factor for sample in data_samples]
        found = self.outputs(inputs, data_samples)
        if 'logits' in found:
            logits, boxes = found['logits'], found['boxes']
            stage = StageOutput(logits, boxes, boxes, boxes)
            best = select_topk(stage, self.meta['max_per_img'])
            results = to_instances(*best, factors)
        else:
            results = to_instances(
                found['scores'], found['labels'], found['boxes']
            )
        for sample, instances in zip(data_samples, results, strict=True):
            sample.pred_instances = instances
        return data_samples

    def outputs(
        self, inputs: Tensor, data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Return what the graph returns, by name.

        Args:
            inputs: See `forward`.
            data_samples: See `forward`.
        """
        factors = [sample.scale_factor for sample in data_samples]
        given = {
            'images': inputs.cpu().numpy(),
            'sizes': sizes_of(inputs, data_samples).cpu().numpy(),
            'scales': np.array(factors, np.float32)[:, :2],
        }
        try:
            check_images(given['images'], self.meta)
        except ValueError as error:
            raise UsageError(f'{self.artefact}: {error}') from None
        found = self._run(given)
        return {name: torch.from_numpy(found[name]) for name in found}

    def check(self, cfg: Config, num_classes: int) -> None:
        """Refuse a config that the file was not exported from.

        Args:
            cfg: The config.
            num_classes: Of its data.

        Raises:
            UsageError: If it prepares images in another way, or has another
                number of classes.
        """
        expected = self.meta['preprocessing']
        found = describe_preprocessing(cfg)
        for key, value in found.items():
            if expected[key] != value:
                raise UsageError(
                    f'{self.artefact}: was exported from another config: its '
                    f'{key} is {expected[key]}, here it is {value}'
                )
        if len(self.meta['classes']) != num_classes:
            raise UsageError(
                f'{self.artefact}: was exported from another config: it has '
                f'{len(self.meta["classes"])} classes, here are {num_classes}'
            )


def is_artefact(path: str | PathLike[str]) -> bool:
    """Tell an exported file from a checkpoint, by its name.

    Args:
        path: The file.
    """
    return fspath(path).endswith(tuple(e for e, _ in FORMATS.values()))


def as_model(
    cfg: Mapping[str, Any], path: str | PathLike[str], trust: bool = False
) -> dict[str, Any]:
    """Return the config of an `ExportedDetector`, instead of ``cfg.model``.

    Args:
        cfg: The config that the file was exported from.
        path: The file.
        trust: Whether it may run code while it is loaded.
    """
    return {
        'type': 'ExportedDetector',
        'artefact': fspath(path),
        'data_preprocessor': cfg['model'].get('data_preprocessor'),
        'trust': trust,
    }


def _load_onnx(path: str) -> tuple[dict[str, Any], Run]:
    import_extra('onnxruntime', 'onnx')
    detector = Detector(path)
    return detector.meta, detector.run


def _load_openvino(path: str) -> tuple[dict[str, Any], Run]:
    openvino = import_extra('openvino', 'openvino')
    weights = str(Path(path).with_suffix('.bin'))
    check_file(weights, 'CHECKPOINT')
    core = openvino.Core()
    try:
        model = core.read_model(path)
        # Not the type that a processor is fastest in, which may be bfloat16.
        options = {'INFERENCE_PRECISION_HINT': 'f32'}
        compiled = core.compile_model(model, 'CPU', options)
    except Exception:  # RuntimeError and others
        raise ValueError(
            f'{path}: no model of OpenVINO, or it or {weights} is cut off'
        ) from None
    has_meta = model.has_rt_info(META_KEY)
    text = model.get_rt_info(META_KEY).astype(str) if has_meta else None
    meta = read_meta(text, path)

    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        found = compiled({name: inputs[name] for name in meta['inputs']})
        names = meta['outputs']
        return {name: found[i] for i, name in enumerate(names)}

    return meta, run


def _load_torch(path: str, trust: bool) -> tuple[dict[str, Any], Run]:
    if not trust:
        raise ValueError(
            f'{path}: a .pt2 file may run code while it is loaded; if you '
            f'trust where it comes from, add {TRUST_FLAG}'
        )
    damage = find_damage(path)
    if damage:
        raise ValueError(f'{path} is damaged or cut off: {damage}')
    extra = {META_KEY: ''}
    try:
        program = torch.export.load(path, extra_files=extra).module()
    except Exception:
        raise ValueError(f'{path}: no program of torch.export') from None
    meta = read_meta(extra[META_KEY], path)

    @torch.no_grad()
    def run(inputs: dict[str, Array]) -> dict[str, Array]:
        given = [torch.from_numpy(inputs[name]) for name in meta['inputs']]
        found = program(*given)
        names = meta['outputs']
        return {n: v.numpy() for n, v in zip(names, found, strict=True)}

    return meta, run
