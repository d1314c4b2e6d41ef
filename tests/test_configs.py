# SPDX-License-Identifier: Apache-2.0
"""Every config builds exactly what its name says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from torch import nn

from lors_det.analysis.costs import build_on_meta
from lors_det.lors import AdaptiveStack, StackedLinear, count_parameters

CONFIG_DIR = Path(__file__).parents[1] / 'configs'
# Other models have rows of their own: tests/vit, tests/test_lors_detr.py.
OTHERS = ('_base_', 'bccd', 'deeppcb', 'deit', 'lors_detr')
CONFIGS = sorted(
    path.relative_to(CONFIG_DIR).as_posix()
    for path in CONFIG_DIR.rglob('*.py')
    if path.relative_to(CONFIG_DIR).parts[0] not in OTHERS
)


@dataclass(frozen=True)
class Row:
    """What a name promises.

    Args:
        groups: Channel groups G.
        points: Sampled points P_in.
        kernels: Mode of the mixing kernels; ``rank`` and ``k`` are theirs.
        out: Mode of the output projection; ``out_rank`` is its own.
        rest: Private rank of attention, offsets and FFN; 0 for dense.
        backbone: Type, depth (or depths), and what is special.
        epochs: Length, and where the rate drops.
        resize: Type of the transform that resizes in training.
    """

    stages: int = 6
    queries: int = 100
    groups: int = 2
    points: int = 64
    kernels: str = 'lors'
    rank: int = 16
    k: tuple[int, ...] = (1, 1, 2, 2, 3, 3)
    out: str = 'lors'
    out_rank: int = 8
    rest: int = 0
    classes: int = 80
    backbone: tuple = ('ResNet', 50)
    epochs: tuple = (12, [8, 11])
    resize: str = 'Resize'


LORS = Row()
LORS_4 = Row(groups=4, points=32)
DENSE = replace(LORS_4, kernels='dense', out='dense')
RISING = ('1', '12', '123', '112233', '111222333', '111122223333')
EXPECTED: dict[str, Row] = {
    'lors/lors-adamixer_r50_1x_coco-test-dev.py': LORS,
    'finetune/lors-adamixer_r50_custom.py': replace(LORS, classes=3),
    'lors/lors-adamixer_r50_4-group_1x_coco.py': LORS_4,
    'lors/lors-adamixer_r50_4-group_300-query_ms-crop-3x_coco.py': replace(
        LORS_4, queries=300, epochs=(36, [24, 33]), resize='RandomChoice'
    ),
}
for _name, _row in (('adamixer', DENSE), ('lors', LORS)):
    _prefix = 'lors-adamixer' if _name == 'lors' else 'adamixer'
    _crop = replace(_row, epochs=(36, [24, 33]), resize='RandomChoice')
    _more = replace(_crop, queries=300)
    for _suffix, _spec in {
        'r50_1x': _row,
        'r50_ms-3x': replace(
            _row, epochs=(36, [27, 33]), resize='RandomChoiceResize'
        ),
        'r50_ms-crop-3x': _crop,
        'r50_300-query_ms-crop-3x': _more,
        'r101_300-query_ms-crop-3x': replace(_more, backbone=('ResNet', 101)),
        'x101-32x4d-dconv_300-query_ms-crop-3x': replace(
            _more, backbone=('ResNeXt', 101)
        ),
        'swin-s_300-query_ms-crop-3x': replace(
            _more, backbone=('SwinTransformer', [2, 2, 18, 2])
        ),
    }.items():
        EXPECTED[f'{_name}/{_prefix}_{_suffix}_coco.py'] = _spec
    for _k in map(tuple, (map(int, each) for each in RISING)):
        EXPECTED[f'{_name}/depth/{_prefix}_r50_{len(_k)}-stage_1x_coco.py'] = (
            replace(_row, stages=len(_k), k=_k)
        )
for _folder, _suffix, _spec in [
    *(('rank', f'rank-{r}', {'rank': r}) for r in (4, 8, 16, 32, 64)),
    *(('rank', f'static-rank-{r}', {'out_rank': r}) for r in (4, 8, 16, 32)),
    ('rank', 'k-1', {'k': (1,) * 6}),
    ('rank', 'k-2', {'k': (2,) * 6}),
    ('rank', 'k-rising', {}),
    ('rank', 'k-falling', {'k': (3, 3, 2, 2, 1, 1)}),
    ('ablation', 'shared-only', {'kernels': 'shared', 'out': 'shared'}),
    ('ablation', 'private-only', {'kernels': 'private', 'out': 'private'}),
    ('ablation', 'adaptive-only', {'out': 'dense'}),
    ('ablation', 'static-only', {'kernels': 'dense'}),
    ('ablation', 'everything', {'rest': 8}),
]:
    EXPECTED[f'lors/{_folder}/lors-adamixer_r50_{_suffix}_1x_coco.py'] = (
        replace(LORS, **_spec)
    )
# A small model of its own: see test_demo.
DEMO = 'demo/lors-adamixer_r18_coco-tiny.py'


def matrix(rows: int, cols: int, n: int, mode: str, ranks: list[int]) -> int:
    """Parameters of n static matrices."""
    full = {'dense': n, 'shared': 1, 'lors': 1, 'private': 0}[mode]
    private = sum(ranks) * (rows + cols) if mode in ('lors', 'private') else 0
    return full * rows * cols + private


def generated(rows: int, cols: int, row: Row) -> int:
    """Parameters of the generators of (rows, cols) matrices."""
    c, g = 256, row.groups
    full = {'dense': row.stages, 'shared': 1, 'lors': 1, 'private': 0}
    count = full[row.kernels] * (c + 1) * g * rows * cols
    if row.kernels in ('lors', 'private'):
        for k in row.k:
            count += g * k * row.rank * (rows + cols)
            count += (c + 1) * g * k * row.rank**2
    return count


def decoder_parameters(row: Row) -> int:
    """Closed form in everything that a name can say."""
    c, n, p_out, ffn = 256, row.stages, 128, 2048
    offsets = row.groups * row.points * 3
    mode = 'lors' if row.rest else 'dense'
    ranks = [row.rest] * n
    count = sum(
        matrix(out, into, n, mode, ranks) + n * out
        for out, into in (
            (3 * c, c), (c, c), (offsets, c), (ffn, c), (c, ffn),
        )
    )  # fmt: skip
    count += n * (8 + 5 * 2 * c)  # tau; norms of three steps, two branches
    count += n * 2 * (c * c + c)  # hidden layers of the branches
    count += n * (c + 1) * (row.classes + 4)
    width = c // row.groups
    count += generated(width, width, row) + generated(p_out, row.points, row)
    count += matrix(c, c * p_out, n, row.out, [row.out_rank] * n) + n * c
    return count


@cache
def load(name: str) -> Config:
    return Config.fromfile(CONFIG_DIR / name)


def test_every_config_has_a_row() -> None:
    assert sorted([*EXPECTED, DEMO]) == CONFIGS


@pytest.mark.parametrize(
    ('narrow', 'full'),
    [
        ('adamixer_mobilenetv2', 'adamixer/adamixer_r50_1x'),
        ('lors-adamixer_mobilenetv2', 'lors/lors-adamixer_r50_1x'),
        ('lors-adamixer_mobilenetv2_4-group',
         'lors/lors-adamixer_r50_4-group_1x'),
    ],
)  # fmt: skip
@pytest.mark.parametrize(('data', 'classes'), [('bccd', 3), ('deeppcb', 6)])
def test_narrow_models_have_the_full_ones_proportions(
    narrow: str, full: str, data: str, classes: int
) -> None:
    decoder = load(f'{data}/{narrow}_{data}.py').model.decoder.to_dict()
    expected = load(f'{full}_coco.py').model.decoder.to_dict()
    for key in ('embed_dims', 'num_heads', 'in_points', 'out_points',
                'feedforward_channels'):  # fmt: skip
        expected[key] //= 4
    for stack in expected['stacks'].values():
        stack['rank'] //= 4
    assert decoder == {**expected, 'num_classes': classes}


@pytest.mark.parametrize('name', EXPECTED)
def test_model(name: str) -> None:
    row = EXPECTED[name]
    model = build_on_meta(load(name).model)
    decoder = model.get_submodule('decoder')
    sampling, mixing = decoder.sampling, decoder.mixing
    assert decoder.num_stages == row.stages
    assert decoder.num_classes == row.classes
    assert model.max_per_img == row.queries
    assert model.queries.content.shape == (row.queries, 256)
    assert sampling.num_groups == row.groups
    assert sampling.in_points == row.points
    for kernels in (mixing.channel, mixing.spatial):
        assert isinstance(kernels, AdaptiveStack)
        assert kernels.config.mode == row.kernels
        if kernels.config.has_private:
            assert kernels.sizes == [(k, row.rank) for k in row.k]
    check_static(mixing.out_proj, row.out, row.out_rank)
    attention, ffn = decoder.attention, decoder.ffn
    for stack in (
        attention.in_proj, attention.out_proj, sampling.offsets,
        ffn.fc1, ffn.fc2,
    ):  # fmt: skip
        check_static(stack, 'lors' if row.rest else 'dense', row.rest)
    assert count_parameters(decoder).total == decoder_parameters(row)


def check_static(stack: nn.Module, mode: str, rank: int) -> None:
    assert isinstance(stack, StackedLinear)
    assert stack.config.mode == mode
    if stack.config.has_private:
        assert {len(a) for a in stack.private_A.values()} == {rank}


def test_closed_form_on_the_releases() -> None:
    assert decoder_parameters(DENSE) == 110_272_296
    assert decoder_parameters(LORS) == 35_348_264
    assert decoder_parameters(LORS_4) == 34_344_744


def test_demo() -> None:
    model = build_on_meta(load(DEMO).model)
    decoder = model.get_submodule('decoder')
    assert decoder.num_stages == 3
    assert model.max_per_img == 40
    assert decoder.mixing.channel.sizes == [(1, 8), (2, 8), (3, 8)]
    assert decoder.mixing.spatial.config.mode == 'lors'
    check_static(decoder.mixing.out_proj, 'lors', 8)


@pytest.mark.parametrize('name', EXPECTED)
def test_recipe_of_the_releases(name: str) -> None:
    row, cfg = EXPECTED[name], load(name)
    swin = row.backbone[0] == 'SwinTransformer'
    warmup, steps = cfg.param_scheduler
    assert (cfg.train_cfg.max_epochs, steps.milestones) == row.epochs
    assert (warmup.start_factor, warmup.end) == (0.001, 1000 if swin else 500)
    assert (warmup.by_epoch, steps.by_epoch) == (False, True)
    optimizer = {'type': 'AdamW', 'lr': 2.5e-5, 'weight_decay': 1e-4}
    assert cfg.optim_wrapper.optimizer == optimizer
    keys = cfg.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    undecayed = 'absolute_pos_embed norm relative_position_bias_table'.split()
    assert sorted(keys) == (undecayed if swin else [])
    assert all(value == {'decay_mult': 0.0} for value in keys.values())
    assert cfg.optim_wrapper.clip_grad.max_norm == 1.0
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert not cfg.get('find_unused_parameters')

    _, _, *augmentations, _ = cfg.train_dataloader.dataset.pipeline
    if row.resize != 'Resize':  # after the flip
        augmentations.reverse()
    resize, flip = augmentations
    assert resize.type == row.resize
    assert (flip.type, flip.prob) == ('RandomFlip', 0.5)
    test = cfg.test_dataloader.dataset.pipeline[1]
    for each in (test, *([resize] if row.resize == 'Resize' else [])):
        assert each == dict(type='Resize', scale=(1333, 800), keep_ratio=True)

    backbone, preprocessor = cfg.model.backbone, cfg.model.data_preprocessor
    depth = backbone.get('depth', backbone.get('depths'))
    assert (backbone.type, depth) == row.backbone
    assert swin or (backbone.frozen_stages == 1 and backbone.norm_eval)
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.bgr_to_rgb


def test_special_backbones() -> None:
    name = 'adamixer/adamixer_{}_300-query_ms-crop-3x_coco.py'
    x101 = load(name.format('x101-32x4d-dconv')).model.backbone
    assert (x101.groups, x101.base_width) == (32, 4)
    assert x101.dcn.type == 'DCN'  # version 1, without modulation
    assert x101.stage_with_dcn == (False, True, True, True)
    swin = load(name.format('swin-s')).model
    assert swin.backbone.drop_path_rate == 0.2
    assert swin.backbone.window_size == 7
    assert swin.neck.in_channels == [96, 192, 384, 768]


def test_test_dev_is_format_only() -> None:
    cfg = load('lors/lors-adamixer_r50_1x_coco-test-dev.py')
    assert cfg.test_evaluator.format_only
    assert 'info_test-dev2017' in cfg.test_dataloader.dataset.ann_file
    assert not cfg.val_evaluator.format_only
