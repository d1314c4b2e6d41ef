# SPDX-License-Identifier: Apache-2.0
"""Run exported files where a detector is expected."""

from __future__ import annotations

import warnings
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
from mmengine.structures import InstanceData
from torch import Tensor

from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.detector import sizes_of
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.cli.boundary import walk_config
from lors_det.deploy.formats import (
    FORMATS,
    describe_preprocessing,
    import_extra,
)
from lors_det.deploy.runtime import (
    META_KEY,
    Detector,
    check_images,
    num_threads,
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
        file: The exported file, by whose ending its format is known.
        data_preprocessor: Of the config that it was exported from.
        expected: What that config says of preprocessing and classes.
        trust: Whether the file may run code while it is loaded.

    Attributes:
        meta: What the file says about itself.

    Raises:
        UsageError: If the file cannot be used, its runtime is missing, or it
            was exported from another config.
    """

    def __init__(
        self,
        file: str,
        data_preprocessor: Any,
        expected: Mapping[str, Any],
        trust: bool,
    ) -> None:
        super().__init__(data_preprocessor)
        self.file = file
        check_file(file, 'CHECKPOINT')
        self._run: Run
        try:
            if file.endswith('.onnx'):
                import_extra('onnxruntime')
                detector = Detector(file)
                self.meta, self._run = detector.meta, detector.run
            elif file.endswith('.xml'):
                self.meta, self._run = _load_openvino(file)
            else:
                self.meta, self._run = _load_torch(file, trust)
        except ValueError as error:
            raise UsageError(str(error)) from None
        found = {
            'num_classes': len(self.meta['classes']),
            **self.meta['preprocessing'],
        }
        for key, value in expected.items():
            if found[key] != value:
                raise UsageError(
                    f'{file}: was exported from another config: its {key} is '
                    f'{found[key]}, that of CONFIG is {value}'
                )

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
            raise UsageError(f'{self.file}: is exported, and only detects')
        found = self.select(self.outputs(inputs, data_samples), data_samples)
        for sample, instances in zip(data_samples, found, strict=True):
            sample.pred_instances = instances
        return data_samples

    def select(
        self, outputs: Mapping[str, Tensor], data_samples: SampleList
    ) -> list[InstanceData]:
        """Return the detections of every image, as `AdaMixer.predict`.

        Args:
            outputs: What `outputs` returned.
            data_samples: See `forward`.
        """
        boxes = outputs['boxes']
        if 'logits' not in outputs:
            return to_instances(outputs['scores'], outputs['labels'], boxes)
        factors = [sample.scale_factor for sample in data_samples]
        stage = StageOutput(outputs['logits'], boxes, boxes, boxes)
        best = select_topk(stage, self.meta['max_per_img'])
        return to_instances(*best, factors)

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
            raise UsageError(f'{self.file}: {error}') from None
        found = self._run(given)
        return {name: torch.from_numpy(found[name]) for name in found}


def is_exported(path: str | PathLike[str]) -> bool:
    """Tell an exported file from a checkpoint, by its name.

    Args:
        path: The file.
    """
    return fspath(path).endswith(tuple(e for e, _ in FORMATS.values()))


def exported_config(
    cfg: Config, path: str | PathLike[str], trust: bool = False
) -> dict[str, Any]:
    """Return what stands for ``cfg.model`` to run an exported file.

    Args:
        cfg: The config that it was exported from.
        path: The file.
        trust: Whether it may run code while it is loaded.
    """
    expected = describe_preprocessing(cfg)
    for _, node in walk_config(cfg.model):
        if isinstance(node, Mapping) and 'num_classes' in node:
            expected['num_classes'] = node['num_classes']
    return {
        'type': 'ExportedDetector',
        'file': fspath(path),
        'data_preprocessor': cfg.model.get('data_preprocessor'),
        'expected': expected,
        'trust': trust,
    }


def check_exported_options(device: str | None, dtype: str) -> None:
    """Refuse what an exported file has no choice of.

    Args:
        device: The option ``--device``, None if not given.
        dtype: The option ``--dtype``.

    Raises:
        UsageError: If one is not what exported files run on.
    """
    if device not in (None, 'cpu'):
        raise UsageError(
            f'--device {device}: exported files run on the CPU here'
        )
    if dtype != 'float32':
        raise UsageError(
            f'--dtype {dtype}: the type of an exported file was chosen when '
            'it was exported'
        )


def _load_openvino(path: str) -> tuple[dict[str, Any], Run]:
    openvino = import_extra('openvino')
    weights = str(Path(path).with_suffix('.bin'))
    check_file(weights, 'CHECKPOINT')
    core = openvino.Core()
    options = {
        # Not the type that a processor is fastest in, which may be bfloat16.
        'INFERENCE_PRECISION_HINT': 'f32',
        'INFERENCE_NUM_THREADS': num_threads(),
    }
    try:
        model = core.read_model(path)
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
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # weights are never written to
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
