# SPDX-License-Identifier: Apache-2.0
"""State dicts with the names and shapes of the official releases.

Names and shapes are those that ``tests/golden/README.md`` and the recorded
files have; values are random.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from helpers.factories import build

BACKBONE = {'type': 'ResNet', 'depth': 18, 'base_channels': 8}
CHANNELS = (8, 16, 32, 64)
Sizes = dict[str, tuple[int, ...]]


def official_state(
    release: str,
    backbone: dict[str, Any] | None = None,
    in_channels: Sequence[int] = CHANNELS,
    dims: int = 32,
    groups: int = 2,
    in_points: int = 4,
    out_points: int = 6,
    num_stages: int = 3,
    num_queries: int = 7,
    num_classes: int = 5,
    hidden: int = 16,
    num_cls_fcs: int = 1,
    num_reg_fcs: int = 1,
    ranks: Sequence[int] = (2, 2, 2),
    num_param_groups: Sequence[int] = (1, 2, 1),
    out_ranks: Sequence[int] = (3, 3, 3),
) -> dict[str, Tensor]:
    """Return a detector of the release ``LORS`` or ``AdaMixer``.

    The defaults are those of ``factories.detector_config``.
    """
    generator = groups * ((dims // groups) ** 2 + out_points * in_points)
    out_in = dims * out_points
    num_offsets = 3 * groups * in_points
    sizes: Sizes = {
        'rpn_head.init_content_features.weight': (num_queries, dims),
    }
    linear(sizes, 'neck.gn_out', dims)
    for level, channels in enumerate(in_channels):
        linear(sizes, f'neck.lateral_convs.{level}.conv', dims, channels, 1, 1)
    for stage in range(num_stages):
        head = f'roi_head.bbox_head.{stage}'
        step = 'sampling' if release == 'LORS' else 'sampling_n_mixing'
        sizes[f'{head}.iof_tau'] = (4,)
        sizes[f'{head}.attention.attn.in_proj_weight'] = (3 * dims, dims)
        sizes[f'{head}.attention.attn.in_proj_bias'] = (3 * dims,)
        for name, *size in (
            ('attention.attn.out_proj', dims, dims),
            ('attention_norm', dims),
            ('ffn.layers.0.0', hidden, dims),
            ('ffn.layers.1', dims, hidden),
            ('ffn_norm', dims),
            ('fc_cls', num_classes, dims),
            ('fc_reg', 4, dims),
            (f'{step}.sampling_offset_generator.0', num_offsets, dims),
        ):
            linear(sizes, f'{head}.{name}', *size)
        for branch, number in (('cls', num_cls_fcs), ('reg', num_reg_fcs)):
            for fc in range(number):
                linear(sizes, f'{head}.{branch}_fcs.{3 * fc}', dims, dims)
                linear(sizes, f'{head}.{branch}_fcs.{3 * fc + 1}', dims)
        if release == 'AdaMixer':
            mixing = f'{head}.{step}.adaptive_mixing'
            linear(sizes, f'{mixing}.parameter_generator.0', generator, dims)
            linear(sizes, f'{mixing}.out_proj', dims, out_in)
            linear(sizes, f'{head}.{step}.norm', dims)
    if release == 'LORS':
        mixing = 'roi_head.adaptive_mixing'
        linear(sizes, f'{mixing}.common_parameter_generator', generator, dims)
        sizes[f'{mixing}.base_out_proj.weight'] = (dims, out_in)
        for i, (r, k, o) in enumerate(
            zip(ranks, num_param_groups, out_ranks, strict=True)
        ):
            terms, width = groups * k, dims // groups
            sizes[f'{mixing}.ml_parameters.{i}'] = (terms, width, r)
            sizes[f'{mixing}.mr_parameters.{i}'] = (terms, r, width)
            sizes[f'{mixing}.sl_parameters.{i}'] = (terms, out_points, r)
            sizes[f'{mixing}.sr_parameters.{i}'] = (terms, r, in_points)
            private = f'{mixing}.private_parameter_generator.{i}'
            linear(sizes, private, 2 * terms * r * r, dims)
            sizes[f'{mixing}.out_weight_add_A.{i}'] = (o, out_in)
            sizes[f'{mixing}.out_weight_add_B.{i}'] = (dims, o)
            sizes[f'{mixing}.out_weight_bias.{i}'] = (dims,)
            linear(sizes, f'{mixing}.out_norm.{i}', dims)
    state = {name: torch.randn(size) * 0.1 for name, size in sizes.items()}
    table = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_queries, 1)
    state['rpn_head.init_proposal_bboxes.weight'] = table
    module = build(copy.deepcopy(backbone or BACKBONE))
    state.update(
        {f'backbone.{name}': x for name, x in module.state_dict().items()}
    )
    return state


def linear(sizes: Sizes, name: str, *size: int) -> None:
    """Add weight and bias of a linear layer, a convolution or a norm."""
    sizes[f'{name}.weight'] = size
    sizes[f'{name}.bias'] = size[:1]
