# SPDX-License-Identifier: Apache-2.0
"""DeiT and LORS-DeiT from the releases' names to ours and back, strictly."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lors_det.convert.official import Pair, from_official, to_official
from lors_det.convert.shapes import Shapes
from lors_det.convert.vit_names import DENSE_STACKS, LORS_STACKS, vit_pairs
from lors_det.errors import UsageError
from lors_det.vit.model import ViTClassifier

#: What the settings of a `ViTLayout` are a change of.
BASE_CONFIG = '../deit/deit-tiny_cifar100.py'
#: Channels of an attention head in every DeiT: no tensor tells.
HEAD_DIMS = 64


@dataclass(frozen=True)
class ViTLayout:
    """What a classifier is.

    Args:
        release: ``LORS``, or ``MMClassification`` for dense weights.
        model: Settings of `ViTClassifier`.
    """

    release: str
    model: dict[str, Any]

    @property
    def lors(self) -> bool:
        """Whether its stacks are LORS (else they are dense)."""
        return self.release == 'LORS'


@dataclass(frozen=True)
class ConvertedViT:
    """A converted classifier.

    Args:
        state: The tensors under their new names.
        layout: What the classifier is.
        unused: Source tensors that are no part of the classifier.
        notes: What its user should know.
    """

    state: dict[str, Tensor]
    layout: ViTLayout
    unused: list[str]
    notes: list[str]


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint is a classifier, by a release's names or ours.

    Args:
        state: Tensors by name.
    """
    return 'backbone.cls_token' in state or 'embed.cls_token' in state


def describe_vit(layout: ViTLayout) -> str:
    """Say in one line what a classifier is.

    Args:
        layout: The classifier.
    """
    model = layout.model
    return (
        f'{layout.release}, DeiT, {model["num_layers"]} layers, width '
        f'{model["embed_dims"]}, {model["num_classes"]} classes'
    )


def convert_vit(state: Mapping[str, Tensor], source: str) -> ConvertedViT:
    """From the names of a release to ours.

    Args:
        state: Tensors by their official names.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If it is no such classifier, lacks a tensor, has one too
            many, or one whose shape does not fit.
    """
    layout = vit_layout(state, source)
    pairs, unused = _fit(state, layout, source)
    heads = layout.model['num_heads']
    note = (
        f'num_heads={heads} is a guess ({HEAD_DIMS} channels for each, as in '
        'every DeiT): no tensor tells, and results depend on it'
    )
    return ConvertedViT(
        from_official(state, iter(pairs)), layout, unused, [note]
    )


def revert_vit(state: Mapping[str, Tensor], source: str) -> ConvertedViT:
    """From our names to those of a release.

    Args:
        state: Our tensors by name.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If no release has such a classifier, a tensor is missing
            or one too many, or has a shape that does not fit.
    """
    num_layers = Shapes(state, source).count('encoder.norm1.{}.bias')
    pairs = list(vit_pairs('encoder.ffn.fc1.shared' in state, num_layers))
    ours = [name for pair in pairs for name in pair.ours]
    missing = [name for name in ours if name not in state]
    extra = [name for name in state if name not in set(ours)]
    for what, names in (('lacks', missing), ('has also', extra)):
        if names:
            raise UsageError(
                f'{source} {what} {_some(names)}: the releases have DeiT with '
                'all stacks dense, or with all in the mode lors and a private '
                'part in every layer'
            )
    theirs = to_official(state, iter(pairs))
    layout = vit_layout(theirs, source)
    _fit(theirs, layout, source)
    return ConvertedViT(theirs, layout, [], [])


def vit_layout(state: Mapping[str, Tensor], source: str) -> ViTLayout:
    """Read the settings of a classifier from its shapes.

    Args:
        state: Tensors by their official names.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If a tensor that tells is missing, or tells nonsense.
    """
    shapes = Shapes(state, source)
    lors = LORS_STACKS['ffn.fc1'][0] in shapes
    num_layers = shapes.count('backbone.layers.{}.ln1.weight')
    if not num_layers:
        raise UsageError(
            f'{source} has no tensor backbone.layers.0.ln1.weight'
        )
    fc1 = (
        LORS_STACKS['ffn.fc1'][0]
        if lors
        else f'{DENSE_STACKS["ffn.fc1"].format(0)}.weight'
    )
    dims, channels, patch_size = _dims(
        shapes, 'backbone.patch_embed.projection.weight', 4
    )[:3]
    tokens = _dims(shapes, 'backbone.pos_embed', 3)[1]
    side = math.isqrt(tokens - 1)
    if side**2 != tokens - 1:
        raise UsageError(
            f'{source}: backbone.pos_embed has {tokens} entries: expected one '
            'for the class token and one for each patch of a square image '
            '(DeiT with distillation has one more, and is not supported)'
        )
    stacks = {}
    if lors:
        for name, stack in (
            ('attention', 'attention.qkv'),
            ('ffn', 'ffn.fc1'),
        ):
            factors = LORS_STACKS[stack][1]
            ranks = [
                _dims(shapes, f'{factors.format(i)}.0.weight', 2)[0]
                for i in range(num_layers)
            ]
            stacks[name] = _stack(ranks, dims)
    return ViTLayout(
        'LORS' if lors else 'MMClassification',
        {
            'num_classes': _dims(shapes, 'head.layers.head.weight', 2)[0],
            'img_size': side * patch_size,
            'patch_size': patch_size,
            'in_channels': channels,
            'embed_dims': dims,
            'num_layers': num_layers,
            'num_heads': max(1, dims // HEAD_DIMS),
            'feedforward_channels': _dims(shapes, fc1, 2)[0],
            'stacks': stacks,
        },
    )


def _dims(shapes: Shapes, name: str, number: int) -> tuple[int, ...]:
    """A shape, which must have as many axes as all such classifiers have."""
    shape = shapes[name]
    if len(shape) != number or not all(shape):
        raise UsageError(
            f'{shapes.source}: {name} is {shape}: expected {number} axes, '
            'none of them empty'
        )
    return shape


def _stack(ranks: list[int], limit: int) -> dict[str, Any]:
    """Ranks, as terms of at most full rank where one term would exceed it."""
    terms = [
        next(k for k in range(1, r + 1) if r % k == 0 and r // k <= limit)
        for r in ranks
    ]
    stack: dict[str, Any] = {
        'mode': 'lors',
        'rank': [r // k for r, k in zip(ranks, terms, strict=True)],
    }
    if max(terms) > 1:
        stack['num_param_groups'] = terms
    return stack


def _fit(
    state: Mapping[str, Tensor], layout: ViTLayout, source: str
) -> tuple[list[Pair], list[str]]:
    """Check official tensors against a classifier built for them.

    Returns:
        What is what, and the tensors that are no part of a classifier.
    """
    # Heads do not change any shape; one always divides the width.
    settings = {**copy.deepcopy(layout.model), 'num_heads': 1}
    with torch.device('meta'):
        target = ViTClassifier(**settings).state_dict()
    pairs = list(vit_pairs(layout.lors, layout.model['num_layers']))
    expected = to_official(target, iter(pairs))
    missing = [name for name in expected if name not in state]
    if missing:
        raise UsageError(f'{source} has no {_some(missing)}')
    for name, fits in expected.items():
        if state[name].shape != fits.shape:
            raise UsageError(
                f'{source}: {name} is {tuple(state[name].shape)}, the '
                'classifier that the other tensors make has '
                f'{tuple(fits.shape)}'
            )
    others = [name for name in state if name not in expected]
    extra = [
        name for name in others if name.startswith(('backbone.', 'head.'))
    ]
    if extra:
        raise UsageError(
            f'{source} has also {_some(extra)}: a {layout.release} DeiT has '
            'no place for it, and results depend on it'
        )
    return pairs, [f'{name} {tuple(state[name].shape)}' for name in others]


def _some(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return ', '.join(names[:4]) + more
