# SPDX-License-Identifier: Apache-2.0
"""What a detector costs, counted without training or running it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  # registers torch.ops.torchvision
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lors_det.errors import UsageError
from lors_det.lors import count_parameters

# A 1333 x 800 image, padded to a multiple of 32.
INPUT_SIZE = (800, 1344)
# Parts that are not one module: the modules that are added and taken away.
# ``decoder.mixing.mix`` is the norm, and multiplying with the matrices.
PARTS = {
    'backbone': (['backbone'], []),
    'neck': (['neck'], []),
    'queries': (['queries'], []),
    'decoder.attention': (['decoder.attention'], []),
    'decoder.sampling': (['decoder.sampling'], []),
    'decoder.mixing.kernels': (
        ['decoder.mixing.channel', 'decoder.mixing.spatial'],
        [],
    ),
    'decoder.mixing.mix': (
        ['decoder.mixing'],
        [
            'decoder.mixing.channel',
            'decoder.mixing.spatial',
            'decoder.mixing.out_proj',
        ],
    ),
    'decoder.mixing.out_proj': (['decoder.mixing.out_proj'], []),
    'decoder.ffn': (['decoder.ffn'], []),
    'decoder.heads': (['decoder.heads'], []),
    'decoder': (['decoder'], []),
    'model': ([''], []),
}


@dataclass(frozen=True)
class Part:
    """Costs of a part of a detector.

    Args:
        shared: Parameters in matrices that all stages use.
        private: Parameters in low-rank factors and their generators.
        dense: Parameters in unrelated matrices of stacks.
        other: All other parameters.
        gmacs: 10^9 multiply-adds for one image (`count_macs`).
    """

    shared: int
    private: int
    dense: int
    other: int
    gmacs: float

    @property
    def total(self) -> int:
        """All parameters."""
        return self.shared + self.private + self.dense + self.other


@dataclass(frozen=True)
class ModelReport:
    """Costs of a detector; bytes where a name says so.

    Args:
        parts: Costs by part; ``decoder`` and ``model`` are sums.
        trainable: Parameters that get a gradient.
        dense_decoder: Parameters of the decoder, were all stacks dense.
        checkpoint_bytes: Weights and buffers in float32.
        checkpoint_bytes_half: The same, floating point in float16.
        training_bytes: Weights, gradients and AdamW's two moments in float32.
        allreduce_bytes: Gradients that data-parallel training exchanges in
            each step, in float32.
    """

    parts: dict[str, Part]
    trainable: int
    dense_decoder: int
    checkpoint_bytes: int
    checkpoint_bytes_half: int
    training_bytes: int
    allreduce_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        data = asdict(self)
        for name, part in self.parts.items():
            data['parts'][name]['total'] = part.total
        return data


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


def count_macs(model: nn.Module) -> dict[str, float]:
    """Multiply-adds of a detector for one image of 1333 x 800 pixels.

    Counted by torch's ``FlopCounterMode`` while the detector runs on the meta
    device: every matrix product (also those with generated matrices),
    convolution and attention. Not counted: deformable sampling and its
    interpolation, norms, activations, and everything per element.

    Args:
        model: A detector on the meta device.

    Returns:
        Multiply-adds by the name of the module.
    """
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.torchvision.deform_conv2d: _deform_conv_flops
        },
    )
    model.eval()
    image = torch.empty(1, 3, *INPUT_SIZE, device='meta')
    with torch.no_grad(), counter:
        model(image)
    root = type(model).__name__
    return {
        name.removeprefix(root).removeprefix('.'): sum(ops.values()) / 2
        for name, ops in counter.get_flop_counts().items()
        if name != 'Global'
    }


def _deform_conv_flops(
    images: Sequence[int],
    weight: Sequence[int],
    *_: Any,
    out_shape: Sequence[int],
    **__: Any,
) -> int:
    """Those of the plain convolution: the interpolation is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


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
    twin = build_on_meta({**decoder, 'stacks': {}})
    state = model.state_dict().values()
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ModelReport(
        parts=dict(_parts(model, count_macs(model))),
        trainable=trainable,
        dense_decoder=count_parameters(twin).total,
        checkpoint_bytes=sum(x.numel() * x.element_size() for x in state),
        checkpoint_bytes_half=sum(
            x.numel() * (2 if x.is_floating_point() else x.element_size())
            for x in state
        ),
        training_bytes=4 * total + 3 * 4 * trainable,
        allreduce_bytes=4 * trainable,
    )


def _parts(
    model: nn.Module, macs: Mapping[str, float]
) -> Iterator[tuple[str, Part]]:
    """Costs of the parts, sums last."""
    for part, (added, taken) in PARTS.items():
        signs = [(name, 1) for name in added] + [(name, -1) for name in taken]
        counts = [
            (count_parameters(model.get_submodule(name)), sign)
            for name, sign in signs
        ]
        yield (
            part,
            Part(
                shared=sum(sign * count.shared for count, sign in counts),
                private=sum(sign * count.private for count, sign in counts),
                dense=sum(sign * count.dense for count, sign in counts),
                other=sum(sign * count.other for count, sign in counts),
                gmacs=sum(s * macs.get(name, 0) for name, s in signs) / 1e9,
            ),
        )
