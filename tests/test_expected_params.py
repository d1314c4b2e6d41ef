# SPDX-License-Identifier: Apache-2.0
"""As many parameters as the official modules, part by part."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.factories import build
from helpers.golden_files import recorded
from mmengine.config import Config
from torch import nn

from lors_det.adamixer import AdaMixerDecoder
from lors_det.vit import ViTClassifier

ROOT = Path(__file__).resolve().parents[1]
FILES = recorded('expected_params*.json')
CONFIGS = {
    'adamixer': 'configs/adamixer/adamixer_r50_1x_coco.py',
    'lors': 'configs/lors/lors-adamixer_r50_1x_coco.py',
}
#: The releases keep the initial boxes (4 numbers a query) in a parameter that
#: never gets a gradient; here they are a buffer.
BOX_TABLE = 4

#: Names of our parameters by the official name of a part of a decoder.
DECODER_PARTS = {
    'decoder_roi_head': r'',
    'heads_total': r'(?!mixing\.)',
    'mixing': r'mixing\.',
    'mixing_total': r'mixing\.',
    'shared_generator': r'mixing\.(channel|spatial)\.shared\.',
    'private_generators': r'mixing\.(channel|spatial)\.private_E\.',
    'private_factors': r'mixing\.(channel|spatial)\.private_[AB]\.',
    'shared_out_proj': r'mixing\.out_proj\.shared$',
    'private_out_proj_AB': r'mixing\.out_proj\.private_[AB]\.',
    'out_proj_bias': r'mixing\.out_proj\.bias\.',
    'out_norm': r'mixing\.norm\.',
}
#: The same for one stage, the first one.
MIXING_OF_STAGE = (
    r'mixing\.((channel|spatial)\.dense|out_proj\.dense|out_proj\.bias'
    r'|norm)\.0'
)
STAGE_PARTS = {
    'fc_cls': r'heads\.cls\.out\.\w+\.0$',
    'fc_reg': r'heads\.reg\.out\.\w+\.0$',
    'attention': r'attention\.(in|out)_proj\.\w+\.0$',
    'attention_norm': r'attention\.norm\.0\.',
    'ffn': r'ffn\.fc\d\.\w+\.0$',
    'ffn_norm': r'ffn\.norm\.0\.',
    'cls_fcs': r'heads\.cls\.(fcs\.\d+\.\w+\.0$|norms\.\d+\.0\.)',
    'reg_fcs': r'heads\.reg\.(fcs\.\d+\.\w+\.0$|norms\.\d+\.0\.)',
    'sampling': r'sampling\.offsets\.\w+\.0$',
    'sampling_n_mixing': rf'sampling\.offsets\.\w+\.0$|{MIXING_OF_STAGE}',
    'iof_tau': r'attention\.iof_tau\.0$',
}
SAMPLING_N_MIXING_PARTS = {
    'total': STAGE_PARTS['sampling_n_mixing'],
    'sampling_offset_generator': STAGE_PARTS['sampling'],
    'parameter_generator': r'mixing\.(channel|spatial)\.dense\.0\.',
    'out_proj': r'mixing\.out_proj\.\w+\.0$',
    'norm': r'mixing\.norm\.0\.',
}
#: The same of a classifier.
VIT_PARTS = {
    'total_with_head': r'',
    'backbone': r'(?!head\.)',
    'patch_embed': r'embed\.proj\.',
    'cls_token': r'embed\.cls_token$',
    'pos_embed': r'embed\.pos_embed$',
    'final_norm': r'norm\.',
    'head': r'head\.',
    'encoder': r'encoder\.',
    'encoder_layer_norms': r'encoder\.norm[12]\.',
    'attn_lors': r'encoder\.attention\.',
    'ffn_lors': r'encoder\.ffn\.',
    'attn_shared': r'encoder\.attention\.\w+\.shared$',
    'attn_private_AB': r'encoder\.attention\.\w+\.private_[AB]\.',
    'attn_bias_per_layer': r'encoder\.attention\.\w+\.bias\.',
    'ffn_shared': r'encoder\.ffn\.\w+\.shared$',
    'ffn_private_AB': r'encoder\.ffn\.\w+\.private_[AB]\.',
    'ffn_bias_per_layer': r'encoder\.ffn\.\w+\.bias\.',
}
#: The table of positions of the release's DeiT, for images of 56 pixels.
IMG_SIZE = 56
DEIT = {
    'attn_kernel_size': 32,
    'attn_kernel_groups': [1] * 9 + [2, 4, 6],
    'ffn_kernel_size': 32,
    'ffn_kernel_groups': [6, 4, 2] + [1] * 9,
}


def count(model: nn.Module, pattern: str) -> int:
    """Parameters whose name matches from its beginning."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if re.match(pattern, name)
    )


def numbers(entry: dict[str, Any], *settings: str) -> dict[str, int]:
    """The counts of an entry, without its settings."""
    return {
        key: value
        for key, value in entry.items()
        if isinstance(value, int) and key not in settings
    }


def decoder_of(cell: dict[str, Any]) -> AdaMixerDecoder:
    """The decoder of a cell of a grid, at the official sizes."""
    stacks = {}
    if cell['decoder'] == 'lors':
        stacks = {
            'mixing_kernels': {
                'mode': 'lors',
                'rank': cell['kernel_size'],
                'num_param_groups': cell['kernel_groups'],
            },
            'mixing_out_proj': {
                'mode': 'lors',
                'rank': cell['mix_out_proj_rank'],
            },
        }
    with torch.device('meta'):
        return AdaMixerDecoder(
            num_classes=80,
            num_stages=cell['num_stages'],
            num_groups=cell['n_groups'],
            in_points=cell['in_points'],
            out_points=cell['out_points'],
            stacks=stacks,
        )


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_grids(path: Path) -> None:
    grids = json.loads(path.read_text())
    cells = [*grids.get('dense_grid', []), *grids.get('lors_grid', [])]
    for cell in cells:
        decoder = decoder_of(cell)
        expected = numbers(
            cell, 'num_stages', 'n_groups', 'in_points', 'out_points',
            'kernel_size', 'mix_out_proj_rank', 'kernel_groups',
        )  # fmt: skip
        found = {k: count(decoder, DECODER_PARTS[k]) for k in expected}
        assert found == expected, cell


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_detectors(path: Path) -> None:
    entries = json.loads(path.read_text())
    for name, entry in entries.items():
        match = re.fullmatch(r'(adamixer|lors)_r(\d+)', name)
        if not match:
            continue
        config = Config.fromfile(ROOT / CONFIGS[match[1]]).model
        config.backbone.update(depth=int(match[2]), init_cfg=None)
        with torch.device('meta'):
            model = build(config)
        table = BOX_TABLE * config.num_queries
        parts = Counter()
        for key, parameter in model.named_parameters():
            parts[key.split('.')[0]] += parameter.numel()
        found = {
            f'backbone_resnet{match[2]}_without_fc': parts['backbone'],
            'neck': parts['neck'],
            'queries': parts['queries'] + table,
            'decoder_roi_head': parts['decoder'],
            'total': parts.total() + table,
            'trainable': table
            + sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        expected = numbers(entry)
        assert {k: found[k] for k in expected} == expected, name

        for section, patterns in (
            ('mixing', DECODER_PARTS),
            ('one_stage', STAGE_PARTS),
            ('one_stage_without_mixing', STAGE_PARTS),
            ('one_stage_sampling_n_mixing', SAMPLING_N_MIXING_PARTS),
        ):
            expected = numbers(entry.get(section, {}))
            found = {
                k: count(model.decoder, patterns[k])
                for k in expected
                if k in patterns
            }
            if 'total' in expected:
                found.setdefault('total', sum(found.values()))
            assert found == expected, (name, section)


def deit_tiny(cell: dict[str, Any] | None) -> ViTClassifier:
    """DeiT-Tiny of the release's CIFAR-100 config, dense without a cell."""
    stacks = {
        name: {
            'mode': 'lors',
            'rank': cell[f'{key}_kernel_size'],
            'num_param_groups': cell[f'{key}_kernel_groups'],
        }
        for name, key in (('attention', 'attn'), ('ffn', 'ffn'))
        if cell is not None
    }
    with torch.device('meta'):
        return ViTClassifier(100, img_size=IMG_SIZE, stacks=stacks)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_classifiers(path: Path) -> None:
    content = json.loads(path.read_text())
    entry = content.get('deit_tiny_cifar100', {})
    for cell, expected in (
        (None, entry.get('dense', {})),
        (DEIT, entry.get('lors', {})),
        *((cell, cell) for cell in content.get('vit_grid', [])),
    ):
        model = deit_tiny(cell)
        expected = numbers(expected, 'attn_kernel_size', 'ffn_kernel_size')
        found = {part: count(model, VIT_PARTS[part]) for part in expected}
        assert found == expected, cell
