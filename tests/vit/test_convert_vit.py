# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.factories import randomise
from mmengine.config import Config
from torch import Tensor

from lors_det.convert.command import convert_file
from lors_det.convert.official import to_official
from lors_det.convert.vit import (
    BASE_CONFIG,
    convert_vit,
    describe_vit,
    is_vit,
    revert_vit,
)
from lors_det.convert.vit_names import vit_pairs
from lors_det.errors import UsageError
from lors_det.safe_load import load_checkpoint
from lors_det.vit import ViTClassifier

SETTINGS = {
    'num_classes': 5,
    'img_size': 8,
    'patch_size': 2,
    'in_channels': 1,
    'embed_dims': 12,
    'num_layers': 3,
    'num_heads': 1,
    'feedforward_channels': 20,
}
STACKS = {
    'attention': {'mode': 'lors', 'rank': [1, 2, 8]},
    # 24 and 15 are above the full rank of 12: several terms.
    'ffn': {
        'mode': 'lors',
        'rank': [12, 3, 5],
        'num_param_groups': [2, 1, 3],
    },
}


def ours(stacks: dict[str, Any]) -> ViTClassifier:
    model = ViTClassifier(**SETTINGS, stacks=stacks)
    randomise(model)
    return model


def official(stacks: dict[str, Any]) -> dict[str, Tensor]:
    pairs = vit_pairs(bool(stacks), SETTINGS['num_layers'])
    return to_official(ours(stacks).state_dict(), pairs)


@pytest.mark.parametrize('stacks', [{}, STACKS], ids=['dense', 'lors'])
def test_round_trip(stacks: dict[str, Any]) -> None:
    """Bit for bit, and the layout builds a model that takes the weights."""
    theirs = official(stacks)
    result = convert_vit(theirs, 'file')
    assert result.unused == []
    assert result.layout.model == {**SETTINGS, 'stacks': stacks}
    model = ViTClassifier(**result.layout.model)
    model.load_state_dict(result.state)
    back = revert_vit(model.state_dict(), 'file')
    assert back.layout == result.layout
    assert sorted(back.state) == sorted(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(back.state[name], tensor), name
    assert 'num_heads=1 is a guess' in result.notes[0]


def test_config() -> None:
    """The settings found make a config on top of the base that is named."""
    layout = convert_vit(official(STACKS), 'file').layout
    folder = Path(__file__).resolve().parents[2] / 'configs' / 'deit'
    config = Config.fromfile(folder / BASE_CONFIG)
    config.merge_from_dict({'model': layout.model})
    del config.model['type']
    model = ViTClassifier(**config.model)
    model.load_state_dict(ours(STACKS).state_dict(), strict=True)
    assert describe_vit(layout) == (
        'LORS, DeiT, 3 layers, width 12, 5 classes'
    )


def test_names_of_dense_layers() -> None:
    assert set(official({})) >= {
        'backbone.layers.0.attn.qkv.weight',
        'backbone.layers.1.attn.proj.bias',
        'backbone.layers.2.ffn.layers.0.0.weight',
        'backbone.layers.2.ffn.layers.1.bias',
        'backbone.layers.2.ln2.bias',
        'backbone.ln1.weight',
        'head.layers.head.weight',
    }


def test_recognised() -> None:
    assert is_vit(official({}))
    assert is_vit(ours({}).state_dict())
    assert not is_vit({'backbone.conv1.weight': torch.zeros(1)})


def test_heads_of_a_deit() -> None:
    settings = {**SETTINGS, 'embed_dims': 192, 'num_heads': 3}
    with torch.device('meta'):
        model = ViTClassifier(**settings)
    state = to_official(model.state_dict(), vit_pairs(False, 3))
    assert convert_vit(state, 'file').layout.model == {
        **settings,
        'stacks': {},
    }


@pytest.mark.parametrize('stacks', [{}, STACKS], ids=['dense', 'lors'])
def test_every_tensor_is_needed(stacks: dict[str, Any]) -> None:
    state = official(stacks)
    for name in state:
        rest = {k: v for k, v in state.items() if k != name}
        with pytest.raises(UsageError, match=r'^file '):
            convert_vit(rest, 'file')


@pytest.mark.parametrize('stacks', [{}, STACKS], ids=['dense', 'lors'])
def test_every_shape_is_checked(stacks: dict[str, Any]) -> None:
    state = official(stacks)
    for name, tensor in state.items():
        for wrong in (tensor[..., :-1], tensor[None], tensor[:0]):
            with pytest.raises(UsageError, match=r'^file'):
                convert_vit({**state, name: wrong}, 'file')


def test_what_has_no_place() -> None:
    state = official(STACKS)
    result = convert_vit({**state, 'ema_x': torch.zeros(2, 3)}, 'file')
    assert result.unused == ['ema_x (2, 3)']
    extra = {**state, 'head.layers.pre_logits.weight': torch.zeros(1)}
    with pytest.raises(UsageError, match=r'has also head\.layers\.pre_logits'):
        convert_vit(extra, 'file')
    distilled = {**state, 'backbone.pos_embed': torch.zeros(1, 18, 12)}
    with pytest.raises(UsageError, match='distillation'):
        convert_vit(distilled, 'file')


@pytest.mark.parametrize('mode', ['shared', 'private'])
def test_modes_that_no_release_has(mode: str) -> None:
    stack = {'mode': mode, 'rank': 2}
    state = ours({'attention': stack, 'ffn': stack}).state_dict()
    with pytest.raises(UsageError, match='the releases have DeiT with all'):
        revert_vit(state, 'file')


def test_one_stack_only() -> None:
    for stacks in ({'ffn': STACKS['ffn']}, {'attention': STACKS['attention']}):
        state = ours(stacks).state_dict()
        with pytest.raises(UsageError, match='the releases have DeiT with'):
            revert_vit(state, 'file')


@pytest.mark.parametrize('stacks', [{}, STACKS], ids=['dense', 'lors'])
def test_files(stacks: dict[str, Any], tmp_path: Path) -> None:
    """Through the command's function: there with a config, and back."""
    paths = [str(tmp_path / f'{i}.pth') for i in range(3)]
    theirs = official(stacks)
    torch.save({'meta': {}, 'state_dict': theirs}, paths[0])
    lines = list(convert_file(paths[0], paths[1]))
    text = lines[-1]
    assert text.startswith(f'_base_ = {BASE_CONFIG!r}\n')
    model = ViTClassifier(**eval(text.split('model = ')[1]))
    model.load_state_dict(load_checkpoint(paths[1])['state_dict'])
    list(convert_file(paths[1], paths[2], to_official=True))
    back = load_checkpoint(paths[2])['state_dict']
    assert sorted(back) == sorted(theirs)
    assert all(torch.equal(back[name], x) for name, x in theirs.items())
