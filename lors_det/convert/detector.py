# SPDX-License-Identifier: Apache-2.0
"""Recognise a detector by the shapes of its tensors."""

from __future__ import annotations

import copy
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor

import lors_det.adamixer  # noqa: F401  # registers the detector's parts
from lors_det.adamixer.queries import InitialQueries
from lors_det.convert.backbone import backbone_config
from lors_det.convert.detector_names import (
    DENSE_KERNELS,
    LORS_KERNELS,
    DetectorNames,
    find_kernels,
)
from lors_det.convert.names import RecognisedModel, Shapes

BASE_CONFIG = '../adamixer/adamixer_r50_1x_coco.py'


def recognise_detector(shapes: Shapes) -> RecognisedModel:
    """Read the settings of a detector from the shapes of its tensors.

    Args:
        shapes: Shapes by our names.

    Raises:
        KeyError: If a tensor is missing.
        UsageError: If no release has such a detector.
    """
    kernels = find_kernels(shapes, DENSE_KERNELS[1], LORS_KERNELS[1])
    lors = kernels == LORS_KERNELS[1]
    num_queries, dims = shapes['queries.content']
    width = shapes[kernels][0] // dims  # of G (C / G)^2 rows
    num_groups = dims // width
    num_stages = shapes.count('decoder.attention.iof_tau.{}')
    offsets = shapes['decoder.sampling.offsets.dense.0'][0]  # 3 G P_in
    out_proj = f'decoder.mixing.out_proj.{"shared" if lors else "dense.0"}'
    num_classes = shapes['decoder.heads.cls.out.dense.0'][0]
    backbone = backbone_config(shapes)
    settings: dict[str, Any] = {
        'num_queries': num_queries,
        'backbone': backbone,
        'neck': {
            'in_channels': tuple(
                shapes[f'neck.convs.{level}.weight'][1]
                for level in range(shapes.count('neck.convs.{}.weight'))
            ),
            'out_channels': dims,
        },
        'decoder': {
            'num_classes': num_classes,
            'num_stages': num_stages,
            'embed_dims': dims,
            'num_heads': shapes['decoder.attention.iof_tau.0'][0],
            'num_groups': num_groups,
            'in_points': offsets // (3 * num_groups),
            'out_points': shapes[out_proj][1] // dims,
            'feedforward_channels': shapes['decoder.ffn.fc1.dense.0'][0],
            'num_cls_fcs': shapes.count('decoder.heads.cls.fcs.{}.dense.0'),
            'num_reg_fcs': shapes.count('decoder.heads.reg.fcs.{}.dense.0'),
            # Replaces the stacks of the base config.
            'stacks': {
                '_delete_': True,
                **(_lors_stacks(shapes, num_stages) if lors else {}),
            },
        },
    }
    depth = backbone.get('depth') or backbone['depths']
    return RecognisedModel(
        f'{"LORS" if lors else "AdaMixer"}, '
        f'{backbone.get("type", "ResNet")} {depth}, {num_stages} '
        f'stages, {num_queries} queries, {num_classes} classes',
        BASE_CONFIG,
        settings,
        DetectorNames(lors, num_groups, width),
        _state_dict(settings),
    )


def _lors_stacks(shapes: Shapes, num_stages: int) -> dict[str, Any]:
    mixing, stages = 'decoder.mixing.', range(num_stages)
    # (G, K, C / G, r) and (r, C P_out)
    kernels = [shapes[f'{mixing}channel.private_B.{i}'] for i in stages]
    out = [shapes[f'{mixing}out_proj.private_A.{i}'][0] for i in stages]
    return {
        'mixing_kernels': {
            'mode': 'lors',
            'rank': _one_if_equal([shape[3] for shape in kernels]),
            'num_param_groups': _one_if_equal([shape[1] for shape in kernels]),
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
