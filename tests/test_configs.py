# SPDX-License-Identifier: Apache-2.0
"""Every config builds exactly what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from lors_det.engine.report import build_on_meta
from lors_det.lors import count_parameters

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT / 'configs'))
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
# stages, queries, (G, P_in), ranks of the mixing kernels and K, rank of the
# output projection, parameters of the decoder
EXPECTED = {
    'adamixer/adamixer_r50_1x_coco.py': (
        6, 100, (4, 32), None, None, 110_272_296,
    ),
    'lors/lors-adamixer_r50_1x_coco.py': (
        6, 100, (2, 64), (16, [1, 1, 2, 2, 3, 3]), 8, 35_348_264,
    ),
    'demo/lors-adamixer_r18_coco-tiny.py': (
        3, 40, (2, 16), (8, [1, 2, 3]), 8, 2_795_828,
    ),
    'demo/lors-adamixer_r18_coco-tiny_held-out.py': (
        3, 40, (2, 16), (8, [1, 2, 3]), 8, 2_795_828,
    ),
}  # fmt: skip


def test_every_config_has_a_row() -> None:
    assert sorted(EXPECTED) == CONFIGS


@pytest.mark.parametrize('name', CONFIGS)
def test_model(name: str) -> None:
    stages, queries, sampling, kernels, out_rank, parameters = EXPECTED[name]
    cfg = Config.fromfile(ROOT / 'configs' / name)
    model = build_on_meta(cfg.model)
    decoder = model.decoder
    assert decoder.num_stages == stages
    assert model.queries.content.shape[0] == model.max_per_img == queries
    assert decoder.num_classes == 80
    mixing = decoder.mixing
    assert (
        decoder.sampling.num_groups,
        decoder.sampling.in_points,
    ) == sampling
    if kernels is None:
        assert mixing.channel.config.mode == 'dense'
        assert mixing.out_proj.config.mode == 'dense'
    else:
        rank, groups = kernels
        for stack in (mixing.channel, mixing.spatial):
            assert stack.config.mode == 'lors'
            assert stack.sizes == [(k, rank) for k in groups]
        assert mixing.out_proj.config.mode == 'lors'
        assert {len(a) for a in mixing.out_proj.private_a.values()} == {
            out_rank
        }
    assert count_parameters(decoder).total == parameters


@pytest.mark.parametrize('name', CONFIGS)
def test_dumped_and_reloaded(name: str, tmp_path: Path) -> None:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.dump(tmp_path / 'config.py')
    again = Config.fromfile(tmp_path / 'config.py')
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    'name',
    [
        'adamixer/adamixer_r50_1x_coco.py',
        'lors/lors-adamixer_r50_1x_coco.py',
    ],
)
def test_recipe_of_the_releases(name: str) -> None:
    cfg = Config.fromfile(ROOT / 'configs' / name)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.optim_wrapper.optimizer == {
        'type': 'AdamW',
        'lr': 2.5e-5,
        'weight_decay': 1e-4,
    }
    assert cfg.optim_wrapper.clip_grad.max_norm == 1.0
    warmup, steps = cfg.param_scheduler
    assert (warmup.start_factor, warmup.end) == (0.001, 500)
    assert not warmup.by_epoch
    assert (steps.milestones, steps.by_epoch) == ([8, 11], True)
    # 8 processes of 2 images
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert cfg.train_dataloader.dataset.data_root == 'data/coco/'
    backbone = cfg.model.backbone
    assert backbone.init_cfg.checkpoint == 'torchvision://resnet50'
    assert backbone.frozen_stages == 1
    assert backbone.norm_eval
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.model.data_preprocessor.bgr_to_rgb
    assert not cfg.get('find_unused_parameters')
