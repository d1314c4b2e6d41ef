# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from helpers.factories import randomise

from lors_det.lors import fold
from lors_det.vit import ViTClassifier

SETTINGS = {
    'num_classes': 10,
    'img_size': 8,
    'patch_size': 2,
    'in_channels': 1,
    'embed_dims': 64,
    'num_layers': 4,
    'num_heads': 4,
    'feedforward_channels': 128,
}
STACKS = {
    'attention': {'mode': 'lors', 'rank': 8, 'num_param_groups': 'rising'},
    'ffn': {'mode': 'lors', 'rank': 8, 'num_param_groups': 'falling'},
}


def test_folded_is_the_dense_architecture() -> None:
    model = ViTClassifier(**SETTINGS, stacks=STACKS).eval()
    randomise(model)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = model(images)
        folded = fold(model)
        found = folded(images)
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= 1e-6 * scale
    dense = ViTClassifier(**SETTINGS).eval()
    dense.load_state_dict(folded.state_dict())
    with torch.no_grad():
        assert torch.equal(dense(images), found)
