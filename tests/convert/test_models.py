# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.factories import build, detector_config, randomise
from helpers.official_states import official_state
from mmengine.config import Config
from torch import Tensor, nn

from lors_det.convert.command import config_text
from lors_det.convert.models import Converted, convert, revert
from lors_det.convert.names import Shapes
from lors_det.convert.vit import vit_names
from lors_det.errors import UsageError
from lors_det.vit import ViTClassifier

ROOT = Path(__file__).resolve().parents[2]
VIT = {
    'num_classes': 5,
    'img_size': 8,
    'patch_size': 2,
    'in_channels': 1,
    'embed_dims': 12,
    'num_layers': 3,
    'num_heads': 1,
    'feedforward_channels': 20,
}
VIT_STACKS = {
    'attention': {'mode': 'lors', 'rank': [1, 2, 8]},
    # 24 and 15 are above the full rank of 12: several terms.
    'ffn': {
        'mode': 'lors',
        'rank': [12, 3, 5],
        'num_param_groups': [2, 1, 3],
    },
}
DETECTORS = ('LORS', 'AdaMixer')
CLASSIFIERS = ('LORS-DeiT', 'DeiT')
MODELS = (*DETECTORS, *CLASSIFIERS)


def official(name: str) -> dict[str, Tensor]:
    """A state dict with the names of a release."""
    if name in DETECTORS:
        return official_state(name)
    state = classifier(VIT_STACKS if 'LORS' in name else {}).state_dict()
    return vit_names(Shapes(state)).to_official(state)


def classifier(stacks: dict[str, Any]) -> ViTClassifier:
    model = ViTClassifier(**VIT, stacks=stacks)
    randomise(model)
    return model


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    assert name in state
    return {k: v for k, v in state.items() if k != name}


def model_of(result: Converted) -> nn.Module:
    """Build what the printed config says, from a file as its user would."""
    base = result.model.base_config
    path = str(ROOT / 'configs' / 'adamixer' / base)
    text = config_text(result.model)
    assert text.startswith(f'_base_ = {base!r}\n')
    return build(Config.fromstring(text.replace(base, path), '.py').model)


@pytest.mark.parametrize('name', MODELS)
def test_round_trip_is_bit_identical(name: str) -> None:
    """And the printed config builds a model that takes the weights."""
    state = official(name)
    result = convert(state, 'SRC')
    assert not result.unused
    model = model_of(result)
    model.load_state_dict(result.state)
    back = revert(model.state_dict(), 'DST')
    assert not back.unused
    assert back.model.settings == result.model.settings
    assert sorted(back.state) == sorted(state)
    for key, value in state.items():
        assert back.state[key].dtype == value.dtype, key
        assert torch.equal(back.state[key], value), key


@pytest.mark.parametrize('release', DETECTORS)
def test_sizes_are_inferred(release: str) -> None:
    state = official_state(
        release,
        dims=64,
        groups=4,
        in_points=9,
        out_points=12,
        num_stages=2,
        num_queries=11,
        num_classes=3,
        hidden=24,
        num_cls_fcs=2,
        num_reg_fcs=3,
        ranks=(3, 5),
        num_param_groups=(2, 1),
        out_ranks=(4, 6),
    )
    settings = convert(state, 'SRC').model.settings
    stacks = settings['decoder'].pop('stacks')
    assert settings['num_queries'] == 11
    assert settings['decoder'] == {
        'num_classes': 3,
        'num_stages': 2,
        'embed_dims': 64,
        'num_heads': 4,
        'num_groups': 4,
        'in_points': 9,
        'out_points': 12,
        'feedforward_channels': 24,
        'num_cls_fcs': 2,
        'num_reg_fcs': 3,
    }
    kernels = {'mode': 'lors', 'rank': [3, 5], 'num_param_groups': [2, 1]}
    assert stacks.pop('_delete_')
    assert stacks == (
        {
            'mixing_kernels': kernels,
            'mixing_out_proj': {'mode': 'lors', 'rank': [4, 6]},
        }
        if release == 'LORS'
        else {}
    )


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_sizes_of_a_classifier(name: str) -> None:
    model = convert(official(name), 'SRC').model
    stacks = VIT_STACKS if 'LORS' in name else {}
    assert model.settings == {**VIT, 'stacks': stacks}
    assert 'num_heads=1 is a guess' in model.notes[0]
    release = 'LORS' if 'LORS' in name else 'MMClassification'
    assert model.summary == f'{release}, DeiT, 3 layers, width 12, 5 classes'


def test_heads_of_deit_tiny() -> None:
    with torch.device('meta'):
        model = ViTClassifier(**{**VIT, 'embed_dims': 192, 'num_heads': 3})
    state = model.state_dict()
    state = vit_names(Shapes(state)).to_official(state)
    assert convert(state, 'SRC').model.settings['num_heads'] == 3


RESNEXT = {
    'type': 'ResNeXt',
    'depth': 101,
    'groups': 32,
    'base_width': 4,
    'dcn': {'type': 'DCN', 'deform_groups': 1, 'fallback_on_stride': False},
    'stage_with_dcn': (False, True, True, True),
}
SWIN = {
    'type': 'SwinTransformer',
    'embed_dims': 24,
    'depths': (2, 2, 4, 2),
    'num_heads': (3, 6, 12, 24),
    'window_size': 7,
    'drop_path_rate': 0.2,
}


@pytest.mark.parametrize(
    ('backbone', 'in_channels'),
    [
        ({'type': 'ResNet', 'depth': 34}, (64, 128, 256, 512)),
        ({'type': 'ResNet', 'depth': 101}, (256, 512, 1024, 2048)),
        (RESNEXT, (256, 512, 1024, 2048)),
        (SWIN, (24, 48, 96, 192)),
    ],
    ids=['r34', 'r101', 'x101-dcn', 'swin'],
)
def test_backbones_of_the_releases(
    backbone: dict[str, Any], in_channels: tuple[int, ...]
) -> None:
    # Swin computes its drop path rates with tensors.
    with torch.device('cpu' if backbone is SWIN else 'meta'):
        state = official_state('AdaMixer', backbone, in_channels)
    result = convert(state, 'SRC')
    assert not result.unused
    found = dict(result.model.settings['backbone'])
    assert found.pop('init_cfg') is None
    if backbone['type'] == 'SwinTransformer':
        assert found.pop('_delete_')
    assert {'type': 'ResNet', **found} == backbone


@pytest.mark.parametrize('name', MODELS)
def test_tensors_without_a_place(name: str) -> None:
    """They are listed; in a part of the model refused."""
    state = official(name)
    result = convert({**state, 'ema.x': torch.zeros(2, 3)}, 'SRC')
    assert result.unused == ['ema.x (2, 3)']
    head = 'roi_head' if name in DETECTORS else 'head'
    for extra in ('backbone.fc.bias', f'{head}.pre_logits.weight'):
        with pytest.raises(
            UsageError, match=rf'^SRC: it has also {extra} \(2,\): '
        ):
            convert({**state, extra: torch.zeros(2)}, 'SRC')


@pytest.mark.parametrize('name', MODELS)
def test_every_tensor_and_every_shape_is_checked(name: str) -> None:
    state = official(name)
    # A sample: they are slow to build.
    for key in list(state)[:: 97 if name in DETECTORS else 7]:
        value = state[key]
        wrong = [value[None]]
        if value.dim():
            wrong += [value[..., :-1], value[:0]]
        for changed in (
            without(state, key),
            *({**state, key: x} for x in wrong),
        ):
            with pytest.raises(UsageError, match=r'^SRC'):
                convert(changed, 'SRC')


GENERATOR = (
    'roi_head.bbox_head.0.sampling_n_mixing.adaptive_mixing.'
    'parameter_generator.0.weight'
)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (
            'roi_head.bbox_head.2.ffn_norm.bias',
            None,
            r'SRC: it lacks 1 of the \d+ tensors of this model '
            r'\(AdaMixer, .*\): roi_head.bbox_head.2.ffn_norm.bias',
        ),
        (
            'roi_head.bbox_head.0.iof_tau',
            None,
            'SRC has no tensor roi_head.bbox_head.0.iof_tau',
        ),
        (
            'roi_head.bbox_head.2.fc_cls.bias',
            torch.zeros(4),
            r'SRC: roi_head.bbox_head.2.fc_cls.bias is \(4,\), but by the '
            r'other tensors the model is AdaMixer, .* where it is \(5,\)',
        ),
        (
            'roi_head.bbox_head.0.iof_tau',
            torch.zeros(5),
            'SRC: the shapes of its tensors fit no model: '
            'decoder.embed_dims=32 is not divisible by decoder.num_heads=5',
        ),
        (GENERATOR, torch.zeros(9, 32), 'of its tensors fit no model: '),
        (
            'neck.lateral_convs.0.conv.weight',
            torch.zeros(3),
            'SRC: the shapes of its tensors fit no model: tuple index',
        ),
        (
            'backbone.layer1.0.conv1.weight',
            None,
            'the backbone is none of ResNet, ResNeXt and Swin',
        ),
        (
            'backbone.layer4.2.conv1.weight',
            torch.zeros(1),
            r'no ResNet has \(2, 2, 2, 3\) basic blocks in its stages',
        ),
    ],
)
def test_wrong_detectors(key: str, value: Tensor | None, message: str) -> None:
    state = official_state('AdaMixer')
    state = without(state, key) if value is None else {**state, key: value}
    with pytest.raises(UsageError, match=message):
        convert(state, 'SRC')


def test_other_checkpoints() -> None:
    state = {'backbone.conv1.weight': torch.zeros(1), 'head.x': torch.ones(1)}
    message = (
        r'SRC: a checkpoint of another architecture, .* expected AdaMixer .* '
        'or LORS .*, found the parts backbone, head'
    )
    with pytest.raises(UsageError, match=message):
        convert(state, 'SRC')
    state = official('LORS-DeiT')
    state['backbone.pos_embed'] = torch.zeros(1, 18, 12)
    with pytest.raises(UsageError, match='distillation'):
        convert(state, 'SRC')
    for model in (build(detector_config()), classifier({})):
        with pytest.raises(UsageError, match='of this project already; --to'):
            convert(model.state_dict(), 'SRC')


RANK_0 = {'mode': 'lors', 'rank': [2, 0, 2]}
OUT_PROJ = {'mode': 'lors', 'rank': 2}
SHARED, PRIVATE = {'mode': 'shared'}, {'mode': 'private', 'rank': 2}
HINT = '; the stacks that the releases have are dense, or LORS .* every layer'


@pytest.mark.parametrize(
    ('kind', 'stacks', 'message'),
    [
        ('detector', {'mixing_kernels': PRIVATE}, 'stacks that no release'),
        (
            'detector',
            {'ffn': SHARED},
            f'SRC has no tensor decoder.ffn.fc1.dense.0{HINT}',
        ),
        (
            'detector',
            {'mixing_kernels': RANK_0, 'mixing_out_proj': OUT_PROJ},
            f'SRC has no tensor decoder.mixing.channel.private_B.1{HINT}',
        ),
        ('vit', {'attention': SHARED, 'ffn': SHARED}, HINT),
        ('vit', {'attention': PRIVATE, 'ffn': PRIVATE}, HINT),
        ('vit', {'ffn': VIT_STACKS['ffn']}, HINT),
        ('vit', {'attention': VIT_STACKS['attention']}, HINT),
    ],
)
def test_no_release_has_such_stacks(
    kind: str, stacks: dict[str, Any], message: str
) -> None:
    if kind == 'vit':
        model = classifier(stacks)
    else:
        config = detector_config('dense')
        config.decoder.stacks = stacks
        model = build(config)
    with pytest.raises(UsageError, match=message):
        revert(model.state_dict(), 'SRC')


def test_generators_that_do_not_fit_each_other() -> None:
    state = build(detector_config()).state_dict()
    name = 'decoder.mixing.spatial.shared.weight'
    state[name] = state[name][:-1]
    with pytest.raises(UsageError, match=rf'SRC: {name} is \(47, 32\), but'):
        revert(state, 'SRC')
