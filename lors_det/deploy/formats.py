# SPDX-License-Identifier: Apache-2.0
"""The formats, and how a file says what its images are prepared by."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmdet.utils import get_test_pipeline_cfg

from lors_det.errors import UsageError

#: Ending of the file, and the packages that write it, by format.
FORMATS = {
    'onnx': ('.onnx', ('onnx', 'onnxruntime')),
    'openvino': ('.xml', ('onnx', 'onnxruntime', 'openvino')),
    'torch': ('.pt2', ()),
}
#: Transforms that `describe_preprocessing` knows, or that change no pixel.
TRANSFORMS = ('LoadImageFromFile', 'Resize', 'LoadAnnotations')
PACK = 'PackDetInputs'


def describe_preprocessing(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a config prepares images, as data.

    Args:
        cfg: The config.

    Raises:
        UsageError: If there is a step that the runtime does not have.
    """
    steps = [dict(step) for step in get_test_pipeline_cfg(cfg)]
    names = [str(step.pop('type')).split('.')[-1] for step in steps]
    resize = steps[names.index('Resize')] if 'Resize' in names else {}
    others = {*names} - {*TRANSFORMS, PACK} or {*resize} - {
        'scale',
        'keep_ratio',
    }
    if others or not isinstance(resize.get('scale'), (tuple, list)):
        raise UsageError(
            f'CONFIG: test_pipeline has {", ".join(sorted(others)) or names}: '
            f'expected {", ".join(TRANSFORMS)} and {PACK}, with one Resize to '
            'a scale (width, height)'
        )
    found = cfg['model'].get('data_preprocessor') or {}
    return {
        'scale': [int(side) for side in resize['scale']],
        'keep_ratio': bool(resize.get('keep_ratio', False)),
        'bgr_to_rgb': bool(found.get('bgr_to_rgb', False)),
        'mean': [float(each) for each in found.get('mean') or [0, 0, 0]],
        'std': [float(each) for each in found.get('std') or [1, 1, 1]],
        'pad_size_divisor': int(found.get('pad_size_divisor', 1)),
        'pad_value': float(found.get('pad_value', 0)),
    }


def import_extra(name: str) -> Any:
    """Import a package that an extra of lors_det has.

    Args:
        name: The package.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        extra = 'openvino' if name == 'openvino' else 'onnx'
        raise UsageError(
            f'this format needs the package {name}: '
            f"pip install 'lors_det[{extra}]'"
        ) from None
