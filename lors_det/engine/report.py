# SPDX-License-Identifier: Apache-2.0
"""What a detector's parameters are spent on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope
from terminaltables import AsciiTable
from torch import nn

from lors_det.engine.checks import UsageError
from lors_det.lors import count_parameters

HEADER = ['part', 'shared', 'private', 'dense', 'other', 'total']


def build_on_meta(model_cfg: Mapping[str, Any]) -> nn.Module:
    """Build a detector whose tensors have shapes but no values.

    Args:
        model_cfg: The ``model`` of a config.

    Returns:
        The detector, on torch's meta device.
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


def dense_twin(model_cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same detector with every stack of its decoder dense.

    Args:
        model_cfg: The ``model`` of a config.

    Returns:
        A copy with another ``decoder.stacks``.
    """
    twin = copy.deepcopy(model_cfg)
    twin['decoder']['stacks'] = {}
    return twin


def parameter_table(model_cfg: Mapping[str, Any]) -> str:
    """Count the parameters of a detector by part, and against its dense twin.

    Args:
        model_cfg: The ``model`` of a config with a decoder.

    Returns:
        A table to print, and a line with the reductions.

    Raises:
        UsageError: If the config's model has no decoder of this project.
    """
    if (model_cfg.get('decoder') or {}).get('type') != 'AdaMixerDecoder':
        raise UsageError(
            "model.decoder: expected a decoder of type 'AdaMixerDecoder', "
            f'got {model_cfg.get("decoder")!r}'
        )
    model = build_on_meta(model_cfg)
    twin = build_on_meta(dense_twin(model_cfg))
    rows = [
        [name, *(f'{number:,}' for number in numbers)]
        for name, numbers in _rows(model)
    ]
    lines = [AsciiTable([HEADER, *rows]).table]
    for name, ours, theirs in (
        (
            'decoder',
            model.get_submodule('decoder'),
            twin.get_submodule('decoder'),
        ),
        ('model', model, twin),
    ):
        count = count_parameters(ours).total
        dense = count_parameters(theirs).total
        lines.append(
            f'{name}: {count:,} parameters; with dense stacks of the same '
            f'shape {dense:,}: {1 - count / dense:.1%} fewer'
        )
    return '\n'.join(lines)


def _rows(model: nn.Module) -> Iterator[tuple[str, list[int]]]:
    """Names and counts of the parts, sums last."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if name == 'decoder':
            parts += [
                (f'decoder.{step}', module)
                for step, module in child.named_children()
            ]
        parts.append((name, child))
    for name, module in [*parts, ('model', model)]:
        count = count_parameters(module)
        if count.total:
            yield (
                name,
                [
                    count.shared,
                    count.private,
                    count.dense,
                    count.other,
                    count.total,
                ],
            )
