# SPDX-License-Identifier: Apache-2.0
"""LORS in detectors of MMDetection, by their configs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers.lors_detr_table import (
    CONFIGS,
    MARKS,
    ROOT,
    count,
    dense_config,
    load,
    table,
)
from mmdet.datasets import CocoDataset
from mmdet.registry import MODELS
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import lors_det.lors_detr  # noqa: F401  # registers
from lors_det.lors import count_parameters, fold

STACKS = {
    'decoder.layers': {'re:cross_attn.attn|ffn.+': {'mode': 'lors', 'rank': 4}}
}


def small_detr(**changes: Any) -> Any:
    """A narrow DETR with MMDetection's own initial values."""
    init_default_scope('mmdet')
    cfg = load('lors-detr_r50_8xb2-150e_coco.py')
    attention = {'embed_dims': 32, 'num_heads': 2}
    ffn = {'embed_dims': 32, 'feedforward_channels': 48}
    layer = {'self_attn_cfg': attention, 'ffn_cfg': ffn}
    cfg.merge_from_dict(
        {
            'model.backbone.depth': 18,
            'model.backbone.init_cfg': None,
            'model.neck.in_channels': [512],
            'model.neck.out_channels': 32,
            'model.encoder.num_layers': 1,
            'model.encoder.layer_cfg': layer,
            'model.decoder.num_layers': 3,
            'model.decoder.layer_cfg': {**layer, 'cross_attn_cfg': attention},
            'model.positional_encoding.num_feats': 16,
            'model.bbox_head.embed_dims': 32,
        }
    )
    config = cfg.model
    config.stacks = STACKS
    config.update(changes)
    return config


@pytest.fixture(scope='module')
def batch() -> dict[str, Any]:
    """Two of the images that the project carries."""
    init_default_scope('mmdet')
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True},
        {'type': 'Resize', 'scale': (128, 128), 'keep_ratio': False},
        {'type': 'PackDetInputs'},
    ]
    dataset = CocoDataset(
        data_root=str(ROOT / 'demo/coco_tiny'),
        ann_file='annotations/instances_train.json',
        data_prefix={'img': 'images/'},
        pipeline=pipeline,
    )
    return pseudo_collate([dataset[0], dataset[1]])


def test_table_in_the_docs() -> None:
    """Also that the four are there, and a closed form for one of them."""
    assert len(CONFIGS) == 4
    text = (ROOT / 'docs/lors_detr.md').read_text()
    assert table().join(MARKS) in text
    model = load('lors-detr_r50_8xb2-150e_coco.py').model
    saved = 0
    for rows, cols, per_model in (
        (768, 256, 3), (256, 256, 3), (2048, 256, 2), (256, 2048, 2),
    ):  # fmt: skip
        saved += per_model * (5 * rows * cols - 6 * 32 * (rows + cols))
    assert count(dense_config(model))['whole'] - count(model)['whole'] == saved


@pytest.mark.slow
@pytest.mark.parametrize('name', CONFIGS)
def test_training_step_and_detections(
    name: str, batch: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    cfg = load(name)
    cfg.model.backbone.init_cfg = None
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 100
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert type(model).__name__ == cfg.model.detector
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if '_stacks.' in name and ('shared' in name or 'private_B' in name)
    }
    model.train()
    losses = model.train_step(copy.deepcopy(batch), optim_wrapper)
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    after = dict(model.named_parameters())
    assert len(count_parameters(model).stacks) * 7 == len(before)
    still = [k for k, p in before.items() if torch.equal(p, after[k])]
    # A residual behind a bias of zero has no gradient in the first step.
    assert len(still) < 0.2 * len(before), still

    model.eval()
    with torch.no_grad():
        found = model.test_step(copy.deepcopy(batch))
        assert len(found) == 2
        assert all(len(sample.pred_instances) > 0 for sample in found)

    dense = MODELS.build(dense_config(cfg.model))
    dense.load_state_dict(fold(copy.deepcopy(model)).state_dict())
    for path, module in dense.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            given = getattr(model.get_submodule(path), key)
            torch.testing.assert_close(weight, given, rtol=0, atol=1e-6)


def test_initial_values_are_those_of_the_detector() -> None:
    config = small_detr()
    model = MODELS.build(config)
    before = model.decoder.layers[0].cross_attn.attn.in_proj_weight.clone()
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model.init_weights()
        torch.manual_seed(3)
        dense = MODELS.build(dense_config(copy.deepcopy(config)))
        dense.init_weights()
    state, expected = model.state_dict(), dense.state_dict()
    kept = [name for name in expected if name in state]
    for name in kept:
        torch.testing.assert_close(state[name], expected[name])
    for layer in model.decoder.layers:
        weight = layer.cross_attn.attn.in_proj_weight
        assert not torch.equal(weight, before)
        first = dense.decoder.layers[0].cross_attn.attn.in_proj_weight
        torch.testing.assert_close(weight, first)
    gone = set(expected) - set(kept)
    assert len(gone) == 3 * 4  # in and out projection, two linear layers


def test_a_copy_initialises_itself() -> None:
    """What EMA and pickles do with the model does not reach back."""
    model = MODELS.build(small_detr())
    other = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    other.init_weights()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_wrong_stacks_are_named() -> None:
    with pytest.raises(ValueError, match=r"'decoder\.layer' matches no list"):
        MODELS.build(small_detr(stacks={'decoder.layer': {'ffn': {}}}))
