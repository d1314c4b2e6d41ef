# SPDX-License-Identifier: Apache-2.0
"""Count what a detector costs, without training or running it."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torch.ops.torchvision
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lors_det.errors import UsageError
from lors_det.lors import ParameterCount, count_parameters

# A 1333 x 800 image, padded to a multiple of 32.
INPUT_SIZE = (800, 1344)
PARTS = (
    'backbone', 'neck', 'queries', 'decoder.attention', 'decoder.sampling',
    'decoder.mixing.channel', 'decoder.mixing.spatial',
    'decoder.mixing.out_proj', 'decoder.mixing', 'decoder.ffn',
    'decoder.heads', 'decoder',
)  # fmt: skip


@dataclass(frozen=True)
class ModelReport:
    """Costs of a detector; bytes where a name says so.

    Args:
        parts: Parameters of modules, with all that is inside, by the name
            of the module; ``model`` is all of it.
        gmacs: 10^9 multiply-adds for one image (`count_macs`), by the same
            names.
        trainable: Parameters that get a gradient.
        checkpoint_bytes: Weights and buffers in float32.
        checkpoint_bytes_half: The same, floating point in float16.
        training_bytes: Weights, gradients and AdamW's two moments in float32.
        allreduce_bytes: Gradients that data-parallel training exchanges in
            each step, in float32.
    """

    parts: dict[str, ParameterCount]
    gmacs: dict[str, float]
    trainable: int
    checkpoint_bytes: int
    checkpoint_bytes_half: int
    training_bytes: int
    allreduce_bytes: int


def build_on_meta(model_cfg: Mapping[str, Any]) -> nn.Module:
    """Build a model whose tensors have shapes but no values.

    Args:
        model_cfg: Config of a detector, or of a part of one.

    Returns:
        The model, on torch's meta device.
    """
    model_cfg = copy.deepcopy(model_cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        try:
            with torch.device('meta'):
                return MODELS.build(model_cfg)
        except RuntimeError:
            # Some backbones compute with numbers while they are built (the
            # drop path rates of Swin), and the meta device has none.
            return MODELS.build(model_cfg).to('meta')


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, with formulas for two operators it lacks."""

    def baddbmm(_: Any, a: Sequence[int], b: Sequence[int], **__: Any) -> int:
        """Count a product that is added in place: (m, k) times (k, n)."""
        return 2 * math.prod(a) * b[-1]

    def deform_conv(*shapes: Any, out_shape: Any, **_: Any) -> int:
        """Count the plain convolution, without the interpolation."""
        return 2 * math.prod(out_shape) * math.prod(shapes[1][1:])

    formulas = {
        torch.ops.aten.baddbmm_: baddbmm,
        torch.ops.torchvision.deform_conv2d: deform_conv,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def count_macs(model: nn.Module) -> Counter[str]:
    """Count multiply-adds of a detector for one image of 1333 x 800 pixels.

    `flop_counter` counts while the detector runs on the meta device: every
    matrix product (also those with generated matrices), convolution and
    attention. Not counted: deformable sampling and its interpolation, norms,
    activations, and everything per element.

    Args:
        model: A detector on the meta device.

    Returns:
        Multiply-adds by the name of the module; ``model`` is all of it, and
        0 those of a module that has none.
    """
    model.eval()
    image = torch.empty(1, 3, *INPUT_SIZE, device='meta')
    with torch.no_grad(), flop_counter() as counter:
        model(image)
    root = type(model).__name__
    macs: Counter[str] = Counter()
    for name, ops in counter.get_flop_counts().items():
        part = name.removeprefix(root).removeprefix('.') or 'model'
        macs[part] = sum(ops.values()) // 2
    return macs


def report(model_cfg: Mapping[str, Any]) -> ModelReport:
    """Count what a detector costs.

    Args:
        model_cfg: The ``model`` of a config with a decoder of this project.

    Returns:
        The costs.

    Raises:
        UsageError: If the model has no decoder of this project.
    """
    decoder = model_cfg.get('decoder') or {}
    if decoder.get('type') != 'AdaMixerDecoder':
        raise UsageError(
            "model.decoder: expected a decoder of type 'AdaMixerDecoder', "
            f'got {model_cfg.get("decoder")!r}'
        )
    model = build_on_meta(model_cfg)
    modules = {x or 'model': model.get_submodule(x) for x in (*PARTS, '')}
    macs = count_macs(model)
    state = model.state_dict().values()
    sizes = [p.numel() for p in model.parameters()]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ModelReport(
        parts={x: count_parameters(part) for x, part in modules.items()},
        gmacs={x: macs[x] / 1e9 for x in modules},
        trainable=trainable,
        checkpoint_bytes=sum(x.nbytes for x in state),
        checkpoint_bytes_half=sum(
            x.nbytes // 2 if x.is_floating_point() else x.nbytes for x in state
        ),
        training_bytes=4 * sum(sizes) + 3 * 4 * trainable,
        allreduce_bytes=4 * trainable,
    )
