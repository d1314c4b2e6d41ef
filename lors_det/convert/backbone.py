# SPDX-License-Identifier: Apache-2.0
"""Recognise the backbone of a checkpoint by its names and shapes.

ResNet, ResNeXt (also with deformable convolution) and Swin have the same
names in mmdet 2.x, which the releases are built on, and in mmdet 3.x.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mmdet.models.backbones.resnet import Bottleneck, ResNet

from lors_det.convert.tensors import Shapes
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
        f'{shapes.file}: the backbone is none of ResNet, ResNeXt and '
        f'Swin by the names of mmdet; its tensors: {found or "none"}'
    )


def _blocks(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """Count the blocks of every stage; the pattern has (stage, block)."""
    matches = (re.match(pattern, name) for name in shapes)
    found = {(int(m[1]), int(m[2])) for m in matches if m}
    counts = Counter(stage for stage, _ in found)
    return tuple(counts[stage] for stage in sorted(counts))


def _resnet(shapes: Shapes) -> dict[str, Any]:
    first = 'backbone.layer1.0'
    bottleneck = f'{first}.conv3.weight' in shapes
    blocks = _blocks(shapes, r'backbone\.layer(\d+)\.(\d+)\.')
    depths = [
        depth
        for depth, (block, stages) in ResNet.arch_settings.items()
        if (block is Bottleneck, stages) == (bottleneck, blocks)
    ]
    if not depths:
        kind = 'bottlenecks' if bottleneck else 'basic blocks'
        raise UsageError(
            f'{shapes.file}: no ResNet has {blocks} {kind} in its stages'
        )
    config: dict[str, Any] = {'depth': depths[0]}
    width = shapes[f'{first}.conv1.weight'][0]
    groups = width // shapes[f'{first}.conv2.weight'][1]
    base = shapes[f'{first}.conv3.weight'][0] // 4 if bottleneck else width
    if bottleneck and groups > 1:
        config['type'] = 'ResNeXt'
        config['groups'] = groups
        config['base_width'] = width // groups
    if base != 64:
        config['base_channels'] = base
    stem = shapes['backbone.conv1.weight'][0]
    if stem != 64:
        config['stem_channels'] = stem
    return {**config, **_deformable(shapes), 'init_cfg': None}


def _deformable(shapes: Shapes) -> dict[str, Any]:
    """Return the settings of deformable convolution, if there is one."""
    pattern = r'backbone\.layer(\d+)\.\d+\.conv2\.conv_offset\.weight'
    found = {
        int(match[1]): shapes[name][0]
        for name in shapes
        if (match := re.match(pattern, name))
    }
    if not found:
        return {}
    # For each of 3 x 3 taps an offset (y, x), and a factor in version 2.
    channels = next(iter(found.values()))
    version, per_group = ('DCN', 18) if channels % 18 == 0 else ('DCNv2', 27)
    return {
        'dcn': {
            'type': version,
            'deform_groups': channels // per_group,
            'fallback_on_stride': False,
        },
        'stage_with_dcn': tuple(stage in found for stage in (1, 2, 3, 4)),
    }


def _swin(shapes: Shapes) -> dict[str, Any]:
    depths = _blocks(shapes, r'backbone\.stages\.(\d+)\.blocks\.(\d+)\.')
    stages = [f'backbone.stages.{i}.blocks.0' for i in range(len(depths))]
    tables = [
        shapes[f'{stage}.attn.w_msa.relative_position_bias_table']
        for stage in stages
    ]
    projection = shapes['backbone.patch_embed.projection.weight']
    dims = projection[0]
    norms = (re.fullmatch(r'backbone\.norm(\d)\.weight', n) for n in shapes)
    hidden = shapes[f'{stages[0]}.ffn.layers.0.0.weight'][0]
    # A table has (2 window - 1)^2 rows.
    window = (int(tables[0][0] ** 0.5) + 1) // 2
    return {
        '_delete_': True,
        'type': 'SwinTransformer',
        'embed_dims': dims,
        'depths': depths,
        'num_heads': tuple(table[1] for table in tables),
        'patch_size': projection[-1],
        'window_size': window,
        'mlp_ratio': hidden // dims,
        'qkv_bias': f'{stages[0]}.attn.w_msa.qkv.bias' in shapes,
        'patch_norm': 'backbone.patch_embed.norm.weight' in shapes,
        'drop_path_rate': 0.2,
        'out_indices': tuple(sorted(int(m[1]) for m in norms if m)),
        'init_cfg': None,
    }
