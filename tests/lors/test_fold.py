# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from helpers.factories import (
    decoder,
    encoder,
    positions,
    pyramid,
    randomise,
)
from torch import nn

from lors_det.adamixer.settings import STACKS
from lors_det.lors import MODES, fold, lorsify

CONFIG = {'mode': 'lors', 'rank': 2}


def stacked(mode: str = 'lors') -> nn.Module:
    config = {**CONFIG, 'mode': mode}
    stacks = {'layers': {'self_attn': config, 'linear?': config}}
    model = lorsify(encoder(), stacks, 'fresh')
    randomise(model)
    return model


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
def test_outputs_are_equal(mode: str, training: bool) -> None:
    model = stacked(mode).train(training)
    x = torch.randn(2, 5, 8)
    expected = model(x)
    assert fold(model) is model
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_it_is_the_dense_architecture() -> None:
    """The same classes and names, in the same order; nothing is left."""
    plain = encoder()
    model = fold(stacked().double())
    assert list(map(type, model.modules())) == list(map(type, plain.modules()))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_parameters()] == [
        n for n, _ in plain.named_parameters()
    ]
    plain.double().load_state_dict(model.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(plain(x), model(x), rtol=0, atol=0)
    again = lorsify(model, {'layers': {'self_attn': CONFIG}})
    assert again(x).shape == x.shape


def test_convolutions_get_their_kernels_back() -> None:
    model = nn.Module()
    model.convs = nn.ModuleList(nn.Conv2d(4, 6, 3, groups=2) for _ in '12')
    lorsify(model, {'convs': {'': CONFIG}}, 'fresh')
    expected = [conv.weight for conv in model.convs]
    assert expected[0].shape == (6, 2, 3, 3)
    found = [conv.weight for conv in fold(model).convs]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('mode', ['shared', 'private', 'lors'])
@pytest.mark.parametrize('generators', [False, True])
def test_decoder_of_adamixer(mode: str, generators: bool) -> None:
    """Static stacks become dense; generators of kernels on request."""
    config = {'mode': mode, 'rank': 2}
    model = decoder(stacks=dict.fromkeys(STACKS, config)).double()
    randomise(model)
    kept = {} if generators else {'mixing_kernels': config}
    dense = decoder(stacks=kept).double()
    feats = [feat.double() for feat in pyramid(2)]
    xyzr = positions(2, 7).double()
    content = torch.randn(2, 7, 32, dtype=torch.float64)
    expected = model(feats, content, xyzr)[-1]
    fold(model, generators)
    found = model(feats, content, xyzr)[-1]
    torch.testing.assert_close(found, expected)
    dense.load_state_dict(model.state_dict())
    found = dense(feats, content, xyzr)[-1]
    torch.testing.assert_close(found, expected)


def test_a_part_of_a_model_is_refused() -> None:
    model = stacked()
    with pytest.raises(ValueError, match='is a part of a lorsified'):
        fold(model.layers)
