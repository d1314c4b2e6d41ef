# SPDX-License-Identifier: Apache-2.0
"""Recognise a detector of a release by its names and shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

import lors_det.adamixer  # noqa: F401  # registers the detector's parts
from lors_det.adamixer.queries import InitialQueries
from lors_det.convert.backbone import backbone_config
from lors_det.convert.detector_names import (
    DENSE_MIXING,
    HEAD,
    LORS_MIXING,
    DecoderSizes,
    decoder_renames,
    neck_renames,
)
from lors_det.convert.tensors import OfficialModel, Rename, Shapes
from lors_det.errors import UsageError

BASE_CONFIG = '../adamixer/adamixer_r50_1x_coco.py'
FIRST_HEAD = HEAD.format(0)
FIRST_MIXING = DENSE_MIXING.format(0)
LORS_GENERATOR = f'{LORS_MIXING}common_parameter_generator.weight'
DENSE_GENERATOR = f'{FIRST_MIXING}adaptive_mixing.parameter_generator.0.weight'
OFFSETS = f'{FIRST_MIXING}sampling_offset_generator.0.weight'
QUERIES = 'rpn_head.init_content_features.weight'


def recognise_detector(state: Mapping[str, Tensor]) -> OfficialModel:
    """Read the settings of a detector from its shapes, and its names.

    Args:
        state: Tensors by their official names.

    Raises:
        KeyError: If it lacks a tensor.
        UsageError: If it belongs to neither release.
    """
    shapes = Shapes(state)
    if LORS_GENERATOR not in shapes and DENSE_GENERATOR not in shapes:
        parts = sorted({name.split('.')[0] for name in shapes})
        raise UsageError(
            'a checkpoint of another architecture: expected AdaMixer '
            f'({FIRST_MIXING}*) or LORS ({LORS_MIXING}*), found the parts '
            f'{", ".join(parts) or "none"}'
        )
    sizes, in_points, out_points = _decoder_sizes(shapes)
    num_queries, dims = shapes[QUERIES]
    num_levels = shapes.count('neck.lateral_convs.{}.conv.weight')
    num_classes = shapes[f'{FIRST_HEAD}fc_cls.weight'][0]
    backbone = backbone_config(shapes)
    settings: dict[str, Any] = {
        'num_queries': num_queries,
        'backbone': backbone,
        'neck': {
            'in_channels': tuple(
                shapes[f'neck.lateral_convs.{level}.conv.weight'][1]
                for level in range(num_levels)
            ),
            'out_channels': dims,
        },
        'decoder': {
            'num_classes': num_classes,
            'num_stages': sizes.num_stages,
            'embed_dims': dims,
            'num_heads': shapes[f'{FIRST_HEAD}iof_tau'][0],
            'num_groups': sizes.num_groups,
            'in_points': in_points,
            'out_points': out_points,
            'feedforward_channels': shapes[
                f'{FIRST_HEAD}ffn.layers.0.0.weight'
            ][0],
            'num_cls_fcs': sizes.num_cls_fcs,
            'num_reg_fcs': sizes.num_reg_fcs,
            # Replaces the stacks of the base config.
            'stacks': {
                '_delete_': True,
                **(_lors_stacks(shapes, sizes) if sizes.lors else {}),
            },
        },
    }
    depth = backbone.get('depth') or backbone['depths']
    built = _state_dict(settings)
    return OfficialModel(
        f'{"LORS" if sizes.lors else "AdaMixer"}, '
        f'{backbone.get("type", "ResNet")} {depth}, {sizes.num_stages} '
        f'stages, {num_queries} queries, {num_classes} classes',
        BASE_CONFIG,
        settings,
        _renames(sizes, num_levels, built),
        built,
    )


def detector_renames(shapes: Shapes) -> list[Rename]:
    """Return the names that a detector of ours would have in the releases.

    Args:
        shapes: Shapes of our tensors.

    Raises:
        KeyError: If it lacks a tensor.
        UsageError: If no release has such a decoder.
    """
    lors, dense = (
        f'decoder.mixing.channel.{part}.weight'
        for part in ('shared', 'dense.0')
    )
    if lors not in shapes and dense not in shapes:
        raise UsageError(
            'it has no decoder that a release has: expected '
            f'{lors} (LORS) or {dense} (AdaMixer)'
        )
    dims = shapes['queries.content'][1]
    rows = shapes[lors if lors in shapes else dense][0]  # G (C / G)^2
    sizes = DecoderSizes(
        num_stages=shapes.count('decoder.attention.iof_tau.{}'),
        num_groups=dims // (rows // dims),
        group_channels=rows // dims,
        lors=lors in shapes,
        num_cls_fcs=shapes.count('decoder.heads.cls.fcs.{}.dense.0'),
        num_reg_fcs=shapes.count('decoder.heads.reg.fcs.{}.dense.0'),
    )
    return _renames(sizes, shapes.count('neck.convs.{}.weight'), shapes)


def _renames(
    sizes: DecoderSizes, num_levels: int, names: Iterable[str]
) -> list[Rename]:
    """Return the names of a detector; of the backbone they are the same."""
    backbone = [name for name in names if name.startswith('backbone.')]
    return [
        *decoder_renames(sizes),
        *neck_renames(num_levels),
        *(Rename(name, (name,)) for name in backbone),
    ]


def _decoder_sizes(shapes: Shapes) -> tuple[DecoderSizes, int, int]:
    """Return the sizes of a decoder, P_in and P_out."""
    dims = shapes[QUERIES][1]
    lors = LORS_GENERATOR in shapes
    if lors:
        out_dims = shapes[f'{LORS_MIXING}base_out_proj.weight'][1]
        width = shapes[f'{LORS_MIXING}ml_parameters.0'][1]
        in_points = shapes[f'{LORS_MIXING}sr_parameters.0'][2]
    else:
        out_dims = shapes[f'{FIRST_MIXING}adaptive_mixing.out_proj.weight'][1]
        # Rows of the generator: G (C/G)^2 + G P_out P_in; of the offset
        # generator: 3 G P_in.
        points = shapes[OFFSETS][0] // 3
        rows = shapes[DENSE_GENERATOR][0] - out_dims // dims * points
        width = rows // dims
        in_points = points * width // dims
    if not 0 < width <= dims:
        name = LORS_GENERATOR if lors else DENSE_GENERATOR
        raise UsageError(
            f'{name} {shapes[name]} fits no number of groups of {dims} '
            'channels'
        )
    sizes = DecoderSizes(
        num_stages=shapes.count(f'{HEAD}fc_cls.weight'),
        num_groups=dims // width,
        group_channels=width,
        lors=lors,
        # A branch is one list: linear, norm, ReLU, linear, ...
        num_cls_fcs=shapes.count(f'{FIRST_HEAD}cls_fcs.{{}}.weight', step=3),
        num_reg_fcs=shapes.count(f'{FIRST_HEAD}reg_fcs.{{}}.weight', step=3),
    )
    return sizes, in_points, out_dims // dims


def _lors_stacks(shapes: Shapes, sizes: DecoderSizes) -> dict[str, Any]:
    """Return the settings of the mixing's stacks."""
    stages = range(sizes.num_stages)
    kernels = [shapes[f'{LORS_MIXING}ml_parameters.{i}'] for i in stages]
    out = [shapes[f'{LORS_MIXING}out_weight_add_A.{i}'][0] for i in stages]
    return {
        'mixing_kernels': {
            'mode': 'lors',
            'rank': _one_if_equal([shape[2] for shape in kernels]),
            'num_param_groups': _one_if_equal(
                [shape[0] // sizes.num_groups for shape in kernels]
            ),
        },
        'mixing_out_proj': {'mode': 'lors', 'rank': _one_if_equal(out)},
    }


def _one_if_equal(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _state_dict(settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a detector, for its names and shapes."""
    settings = copy.deepcopy(settings)  # builders change it
    backbone, decoder = settings['backbone'], settings['decoder']
    backbone.pop('_delete_', None)
    decoder['stacks'].pop('_delete_')
    # Not on the meta device: Swin computes its drop path rates with tensors.
    parts = {'backbone': MODELS.build({'type': 'ResNet', **backbone})}
    with torch.device('meta'):
        parts['neck'] = MODELS.build(
            {'type': 'SharedNormMapper', **settings['neck']}
        )
        parts['decoder'] = MODELS.build({'type': 'AdaMixerDecoder', **decoder})
        parts['queries'] = InitialQueries(
            settings['num_queries'], decoder['embed_dims']
        )
    return dict(torch.nn.ModuleDict(parts).state_dict())
