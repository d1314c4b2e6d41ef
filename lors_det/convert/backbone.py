# SPDX-License-Identifier: Apache-2.0
"""Recognise the backbone of a checkpoint by its names and shapes.

ResNet, ResNeXt (also with deformable convolution) and Swin have the same
names in mmdet 2.x, which the releases are built on, and in mmdet 3.x.
"""

from __future__ import annotations

import math
from typing import Any

from mmdet.models.backbones.resnet import Bottleneck, ResNet

from lors_det.convert.names import Shapes
from lors_det.errors import UsageError


def backbone_config(shapes: Shapes) -> dict[str, Any]:
    """Return the settings of a backbone, as a change of our ResNet-50's.

    Settings that no shape depends on, like the drop path rate, are those of
    the releases.

    Args:
        shapes: Shapes of the whole checkpoint.

    Returns:
        Settings for ``model.backbone``; with ``_delete_`` if they replace
        those of the ResNet-50.

    Raises:
        UsageError: If it is none of ResNet, ResNeXt and Swin.
    """
    if 'backbone.layer1.0.conv1.weight' in shapes:
        return _resnet(shapes)
    if 'backbone.patch_embed.projection.weight' in shapes:
        return _swin(shapes)
    found = [name for name in shapes if name.startswith('backbone.')][:3]
    raise UsageError(
        'the backbone is none of ResNet, ResNeXt and Swin by the names of '
        f'mmdet; its tensors: {found or "none"}'
    )


def _resnet(shapes: Shapes) -> dict[str, Any]:
    first = 'backbone.layer1.0'
    bottleneck = f'{first}.conv3.weight' in shapes
    blocks = tuple(
        shapes.count(f'backbone.layer{stage}.{{}}.conv1.weight')
        for stage in (1, 2, 3, 4)
    )
    depths = {
        (block is Bottleneck, stages): depth
        for depth, (block, stages) in ResNet.arch_settings.items()
    }
    if (bottleneck, blocks) not in depths:
        kind = 'bottlenecks' if bottleneck else 'basic blocks'
        raise UsageError(f'no ResNet has {blocks} {kind} in its stages')
    config: dict[str, Any] = {'depth': depths[bottleneck, blocks]}
    width = shapes[f'{first}.conv1.weight'][0]
    groups = width // shapes[f'{first}.conv2.weight'][1]
    base = shapes[f'{first}.conv3.weight'][0] // 4 if bottleneck else width
    if groups > 1:
        config['type'] = 'ResNeXt'
        config['groups'] = groups
        config['base_width'] = width // groups
    if base != 64:
        config['base_channels'] = base
    offsets = [
        shapes.get(f'backbone.layer{stage}.0.conv2.conv_offset.weight')
        for stage in (1, 2, 3, 4)
    ]
    for offset in filter(None, offsets):
        config['dcn'] = {
            'type': 'DCN',
            # An offset (y, x) for each of 3 x 3 taps.
            'deform_groups': offset[0] // 18,
            'fallback_on_stride': False,
        }
        config['stage_with_dcn'] = tuple(map(bool, offsets))
    return {**config, 'init_cfg': None}


def _swin(shapes: Shapes) -> dict[str, Any]:
    stages = 'backbone.stages.{}.blocks.'
    numbers = range(shapes.count(f'{stages}0.norm1.weight'))
    tables = [
        shapes[f'{stages}0.attn.w_msa.relative_position_bias_table'.format(i)]
        for i in numbers
    ]
    return {
        '_delete_': True,
        'type': 'SwinTransformer',
        'embed_dims': shapes['backbone.patch_embed.projection.weight'][0],
        'depths': tuple(
            shapes.count(f'{stages.format(i)}{{}}.norm1.weight')
            for i in numbers
        ),
        'num_heads': tuple(table[1] for table in tables),
        # A table has (2 window - 1)^2 rows.
        'window_size': (math.isqrt(tables[0][0]) + 1) // 2,
        'drop_path_rate': 0.2,
        'init_cfg': None,
    }
