# SPDX-License-Identifier: Apache-2.0
"""Recognise a DeiT or LORS-DeiT by the shapes of its tensors; its names."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from lors_det.convert.names import (
    Names,
    RecognisedModel,
    Shapes,
    read_table,
)
from lors_det.errors import UsageError
from lors_det.vit.model import ViTClassifier

BASE_CONFIG = '../deit/deit-tiny_cifar100.py'
#: Channels of an attention head in every DeiT.
HEAD_DIMS = 64

# The LORS release is built on MMClassification; its dense DeiT has the names
# of that project.
MODEL = """
backbone.cls_token                              embed.cls_token
backbone.pos_embed                              embed.pos_embed
backbone.patch_embed.projection.(weight|bias)   embed.proj.(weight|bias)
backbone.ln1.(weight|bias)                      norm.(weight|bias)
head.layers.head.(weight|bias)                  head.(weight|bias)
backbone.layers.{}.ln1.(weight|bias)            encoder.norm1.{}.(weight|bias)
backbone.layers.{}.ln2.(weight|bias)            encoder.norm2.{}.(weight|bias)
"""
#: Below ``backbone`` and ``encoder``.
DENSE = """
layers.{}.attn.qkv.(weight|bias)                attention.qkv.(dense|bias).{}
layers.{}.attn.proj.(weight|bias)               attention.proj.(dense|bias).{}
layers.{}.ffn.layers.0.0.(weight|bias)          ffn.fc1.(dense|bias).{}
layers.{}.ffn.layers.1.(weight|bias)            ffn.fc2.(dense|bias).{}
"""
LORS = """
attn_lors.(qkv|proj).weight                     attention.(qkv|proj).shared
attn_lors.qkv_private.{}.(0|1).weight           attention.qkv.private_(A|B).{}
attn_lors.proj_private.{}.(0|1).weight          attention.proj.private_(A|B).{}
attn_lors.bias_per_layer.{}.(0|1)               attention.(qkv|proj).bias.{}
ffn_lors.layers.(0|1).0.weight                  ffn.(fc1|fc2).shared
ffn_lors.layers_private.{}.0.(0|1).weight       ffn.fc1.private_(A|B).{}
ffn_lors.layers_private.{}.1.(0|1).weight       ffn.fc2.private_(A|B).{}
ffn_lors.bias_per_layer.{}.(0|1)                ffn.(fc1|fc2).bias.{}
"""


def recognise_vit(shapes: Shapes) -> RecognisedModel:
    """Read the settings of a classifier from the shapes of its tensors.

    Args:
        shapes: Shapes by our names.

    Raises:
        KeyError: If a tensor is missing.
        UsageError: If it is a DeiT with distillation.
    """
    lors = 'encoder.ffn.fc1.shared' in shapes
    num_layers = shapes.count('encoder.norm1.{}.weight')
    dims, channels, patch_size = shapes['embed.proj.weight'][:3]
    num_tokens = shapes['embed.pos_embed'][1]
    side = math.isqrt(num_tokens - 1)
    if side**2 != num_tokens - 1:
        raise UsageError(
            f'its position embedding has {num_tokens} entries: expected one '
            'for the class token and one for each patch of a square image '
            '(DeiT with distillation has one more, and is not supported)'
        )
    stacks = {}
    if lors:
        for name, linear in (('attention', 'qkv'), ('ffn', 'fc1')):
            factors = f'encoder.{name}.{linear}.private_A.{{}}'
            ranks = [shapes[factors.format(i)][0] for i in range(num_layers)]
            stacks[name] = _stack(ranks, dims)
    fc1 = 'encoder.ffn.fc1.' + ('shared' if lors else 'dense.0')
    num_heads = max(1, dims // HEAD_DIMS)
    settings: dict[str, Any] = {
        'num_classes': shapes['head.weight'][0],
        'img_size': side * patch_size,
        'patch_size': patch_size,
        'in_channels': channels,
        'embed_dims': dims,
        'num_layers': num_layers,
        'num_heads': num_heads,
        'feedforward_channels': shapes[fc1][0],
        'stacks': stacks,
    }
    # No shape depends on the number of heads, and 1 divides every width.
    with torch.device('meta'):
        built = ViTClassifier(**{**settings, 'num_heads': 1})
    return RecognisedModel(
        f'{"LORS" if lors else "MMClassification"}, DeiT, {num_layers} '
        f'layers, width {dims}, {settings["num_classes"]} classes',
        BASE_CONFIG,
        settings,
        vit_names(shapes),
        built.state_dict(),
        (
            f'num_heads={num_heads} is a guess ({HEAD_DIMS} channels for '
            'each, as in every DeiT): no shape depends on it, but the outputs '
            'do',
        ),
    )


def vit_names(shapes: Shapes) -> Names:
    """Return the names of a classifier's tensors.

    Args:
        shapes: Shapes of its tensors by their official names, or by ours.
    """
    fc1 = 'backbone.ffn_lors.layers.0.0.weight', 'encoder.ffn.fc1.shared'
    stacks = LORS if any(name in shapes for name in fc1) else DENSE
    return Names(
        [
            *read_table(MODEL),
            *read_table(stacks, 'backbone.', 'encoder.'),
        ]
    )


def _stack(ranks: list[int], full_rank: int) -> dict[str, Any]:
    """Return the settings of a stack with these ranks.

    A rank above the full one is split into equal terms of at most full rank.
    """
    terms = [
        next(
            k
            for k in itertools.count(max(1, math.ceil(rank / full_rank)))
            if rank % k == 0
        )
        for rank in ranks
    ]
    stack: dict[str, Any] = {
        'mode': 'lors',
        'rank': [rank // k for rank, k in zip(ranks, terms, strict=True)],
    }
    if max(terms) > 1:
        stack['num_param_groups'] = terms
    return stack
