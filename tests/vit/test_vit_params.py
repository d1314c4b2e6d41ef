# SPDX-License-Identifier: Apache-2.0
"""As many parameters as the official DeiT-Tiny, part by part."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_files import GOLDEN_DIR

from lors_det.vit import ViTClassifier

PATTERN = 'expected_params*.json'
OWN_DIR = Path(__file__).resolve().parents[1] / 'golden'
#: Of the directory under test; of the project where that has none.
FILES = sorted(GOLDEN_DIR.glob(PATTERN)) or sorted(OWN_DIR.glob(PATTERN))
#: The release's table of positions, for images of 56 pixels.
IMG_SIZE = 56
RELEASE = {
    'attn_kernel_size': 32,
    'attn_kernel_groups': [1] * 9 + [2, 4, 6],
    'ffn_kernel_size': 32,
    'ffn_kernel_groups': [6, 4, 2] + [1] * 9,
}

#: Names of our parameters by the official name of a part.
PARTS = {
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


def check(model: ViTClassifier, entry: dict[str, Any]) -> None:
    """Compare every count that the entry has."""
    expected = {
        key: value
        for key, value in entry.items()
        if isinstance(value, int) and not key.endswith('_kernel_size')
    }
    found = {
        part: sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if re.match(PARTS[part], name)
        )
        for part in expected
    }
    assert found == expected


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_counts_of_the_release(path: Path) -> None:
    content = json.loads(path.read_text())
    for cell in content.get('vit_grid', []):
        check(deit_tiny(cell), cell)
    entry = content.get('deit_tiny_cifar100', {})
    for mode, cell in (('dense', None), ('lors', RELEASE)):
        check(deit_tiny(cell), entry.get(mode, {}))
