# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.factories import build, detector_config
from helpers.official_states import official_state
from mmengine.config import Config
from torch import Tensor

from lors_det.convert.command import BASE_CONFIG, config_text
from lors_det.convert.detector import (
    Converted,
    convert_detector,
    revert_detector,
)
from lors_det.errors import UsageError

RELEASES = ('LORS', 'AdaMixer')
ROOT = Path(__file__).resolve().parents[2]


def convert(state: dict[str, Tensor]) -> Converted:
    return convert_detector(state, 'SRC')


def assert_identical(
    found: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def model_from_text(text: str) -> Any:
    """Build what the printed config says, from a file as its user would."""
    base = str(ROOT / 'configs' / 'adamixer' / BASE_CONFIG)
    assert BASE_CONFIG in text
    text = text.replace(BASE_CONFIG, base)
    return Config.fromstring(text, '.py').model


@pytest.mark.parametrize('release', RELEASES)
def test_round_trip_is_bit_identical(release: str) -> None:
    state = official_state(release)
    result = convert(state)
    assert result.layout.release == release
    assert not result.unused
    back = revert_detector(result.state, 'DST')
    assert not back.unused
    assert_identical(back.state, state)


@pytest.mark.parametrize('release', RELEASES)
def test_the_printed_config_builds_the_detector(release: str) -> None:
    result = convert(official_state(release))
    model = build(model_from_text(config_text(result.layout)))
    model.load_state_dict(result.state)
    mode = 'lors' if release == 'LORS' else 'dense'
    same = build(detector_config(mode))
    same.load_state_dict(result.state)


@pytest.mark.parametrize('release', RELEASES)
def test_sizes_are_inferred(release: str) -> None:
    result = convert(
        official_state(
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
    )
    decoder = result.layout.model['decoder']
    stacks = decoder.pop('stacks')
    assert result.layout.model['num_queries'] == 11
    assert decoder == {
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
    if release == 'LORS':
        assert stacks['mixing_kernels'] == {
            'mode': 'lors',
            'rank': [3, 5],
            'num_param_groups': [2, 1],
        }
        assert stacks['mixing_out_proj'] == {'mode': 'lors', 'rank': [4, 6]}


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
    'mlp_ratio': 4,
    'qkv_bias': True,
    'patch_norm': True,
    'drop_path_rate': 0.2,
    'out_indices': (0, 1, 2, 3),
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
    table = 'rpn_head.init_proposal_bboxes.weight'
    state[table] = torch.zeros(state[table].shape)
    result = convert(state)
    assert not result.unused
    found = dict(result.layout.model['backbone'])
    assert found.pop('init_cfg') is None
    if backbone['type'] == 'SwinTransformer':
        assert found.pop('_delete_')
        assert found.pop('patch_size') == 4
    assert {'type': 'ResNet', **found} == backbone


def test_the_table_of_boxes() -> None:
    state = official_state('LORS')
    assert 'are the constant' in convert(state).notes[0]
    table = state['rpn_head.init_proposal_bboxes.weight']
    table[0, 0] = 0.25
    result = convert(state)
    assert 'are not the constant' in result.notes[0]
    assert torch.equal(result.state['queries.boxes'], table)


def test_tensors_without_a_place_are_listed() -> None:
    state = official_state('LORS')
    state['roi_head.mask_head.conv.weight'] = torch.zeros(2, 3)
    result = convert(state)
    assert result.unused == ['roi_head.mask_head.conv.weight (2, 3)']


def change(name: str, value: Tensor | None) -> dict[str, Tensor]:
    state = official_state('AdaMixer')
    assert name in state
    if value is None:
        del state[name]
    else:
        state[name] = value
    return state


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        (
            {'backbone.conv1.weight': torch.zeros(1), 'bbox_head.x': 1},
            r'SRC is a checkpoint of another architecture: expected AdaMixer '
            r'.* or LORS .*, found the parts backbone, bbox_head',
        ),
        (
            change('roi_head.bbox_head.2.ffn_norm.bias', None),
            r'SRC lacks 1 of the \d+ tensors of a AdaMixer detector: '
            r'roi_head.bbox_head.2.ffn_norm.bias',
        ),
        (
            change('roi_head.bbox_head.0.iof_tau', None),
            r'SRC has no tensor roi_head.bbox_head.0.iof_tau',
        ),
        (
            change('roi_head.bbox_head.2.fc_cls.bias', torch.zeros(4)),
            r'SRC: roi_head.bbox_head.2.fc_cls.bias is \(4,\), '
            r'decoder.heads.cls.out.bias.2 of the detector that the other '
            r'tensors make would be \(5,\)',
        ),
        (
            change('roi_head.bbox_head.0.iof_tau', torch.zeros(5)),
            'SRC: its shapes make no detector: decoder.embed_dims=32 is not '
            'divisible by decoder.num_heads=5',
        ),
        (
            change(
                'roi_head.bbox_head.0.sampling_n_mixing.adaptive_mixing.'
                'parameter_generator.0.weight',
                torch.zeros(10, 32),
            ),
            'fits no number of groups of 32 channels',
        ),
        (
            change('neck.lateral_convs.0.conv.weight', torch.zeros(3)),
            'SRC: a tensor has a shape that no detector has',
        ),
        (
            change('backbone.layer1.0.conv1.weight', None),
            'the backbone is none of ResNet, ResNeXt and Swin',
        ),
        (
            change('backbone.layer4.1.conv1.weight', None)
            | {'backbone.layer4.2.conv1.weight': torch.zeros(1)},
            r'no ResNet has \(2, 2, 2, 3\) basic blocks in its stages',
        ),
    ],
)
def test_wrong_checkpoints(state: dict[str, Any], message: str) -> None:
    state = {k: torch.as_tensor(v) for k, v in state.items()}
    with pytest.raises(UsageError, match=message):
        convert(state)


def test_ours_already() -> None:
    ours = build(detector_config()).state_dict()
    with pytest.raises(UsageError, match='is a checkpoint of this project al'):
        convert(ours)


@pytest.mark.parametrize(
    ('stacks', 'message'),
    [
        ({'mixing_kernels': {'mode': 'private', 'rank': 2}}, 'no decoder tha'),
        ({'ffn': {'mode': 'shared'}}, r'lacks 6 tensors .*ffn.fc1.dense.0'),
        (
            {
                'mixing_kernels': {'mode': 'lors', 'rank': [2, 0, 2]},
                'mixing_out_proj': {'mode': 'lors', 'rank': 2},
            },
            r'lacks .*decoder.mixing.channel.private_B.1',
        ),
    ],
)
def test_what_no_release_has(stacks: dict[str, Any], message: str) -> None:
    config = detector_config('dense')
    config.decoder.stacks = stacks
    with pytest.raises(UsageError, match=message):
        revert_detector(build(config).state_dict(), 'SRC')
