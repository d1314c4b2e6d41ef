# SPDX-License-Identifier: Apache-2.0
"""Small models that the tests share."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from lors_det.adamixer import AdaMixerDecoder
from lors_det.lors import MODES

STRIDES = (4, 8, 16, 32)
KERNELS = {'rank': 2, 'num_param_groups': [1, 2, 1]}


def stacks(mode: str) -> dict[str, Any]:
    """Mixing stacks of three stages in one of the four modes."""
    assert mode in MODES
    return {
        'mixing_kernels': {'mode': mode, **KERNELS},
        'mixing_out_proj': {'mode': mode, 'rank': 3},
    }


def decoder_config(mode: str = 'lors', **changes: Any) -> dict[str, Any]:
    """A decoder of three stages that runs in milliseconds."""
    config = {
        'num_classes': 5,
        'num_stages': 3,
        'embed_dims': 32,
        'num_heads': 4,
        'num_groups': 2,
        'in_points': 4,
        'out_points': 6,
        'feedforward_channels': 16,
        'stacks': stacks(mode),
    }
    return {**config, **changes}


def decoder(mode: str = 'lors', **changes: Any) -> AdaMixerDecoder:
    return AdaMixerDecoder(**decoder_config(mode, **changes))


def randomise(module: torch.nn.Module) -> None:
    """Leave no parameter at an initial zero, which would hide errors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def encoder() -> nn.TransformerEncoder:
    """Torch's own encoder of three layers, without dropout."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def pyramid(
    batch: int, channels: int = 32, size: tuple[int, int] = (64, 96)
) -> list[Tensor]:
    return [
        torch.randn(batch, channels, size[0] // s, size[1] // s)
        for s in STRIDES
    ]


def positions(batch: int, num_queries: int) -> Tensor:
    """Query positions all over a 96 x 64 image."""
    x = torch.rand(batch, num_queries) * 96
    y = torch.rand(batch, num_queries) * 64
    z = 2 + 3 * torch.rand(batch, num_queries)
    r = torch.rand(batch, num_queries) * 2 - 1
    return torch.stack([x, y, z, r], dim=-1)


def detector_config(mode: str = 'lors', **changes: Any) -> ConfigDict:
    """A whole detector on a narrow ResNet-18."""
    config = {
        'type': 'AdaMixer',
        'num_queries': 7,
        'data_preprocessor': {
            'type': 'DetDataPreprocessor',
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'bgr_to_rgb': True,
            'pad_size_divisor': 32,
        },
        'backbone': dict(
            type='ResNet', depth=18, base_channels=8, stem_channels=8,
            norm_eval=True,
        ),
        'neck': dict(
            type='SharedNormMapper', in_channels=[8, 16, 32, 64],
            out_channels=32,
        ),
        'decoder': {'type': 'AdaMixerDecoder', **decoder_config(mode)},
        'criterion': criterion_config(),
    }  # fmt: skip
    return ConfigDict({**config, **changes})


def criterion_config() -> dict[str, Any]:
    return {
        'type': 'SetCriterion',
        'assigner': {
            'type': 'HungarianAssigner',
            'match_costs': [
                {'type': 'FocalLossCost', 'weight': 2.0},
                {'type': 'BBoxL1Cost', 'weight': 5.0, 'box_format': 'xyxy'},
                {'type': 'IoUCost', 'weight': 2.0, 'iou_mode': 'giou'},
            ],
        },
        'loss_cls': {'type': 'FocalLoss', 'loss_weight': 2.0},
        'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
        'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
    }


def build(config: dict[str, Any]) -> Any:
    """Build from a registry, as mmengine's runner does."""
    init_default_scope('mmdet')
    return MODELS.build(config)
