# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from helpers.factories import decoder, positions, pyramid, randomise

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.factorise import factorise_decoder
from lors_det.adamixer.settings import STACKS

# of the decoder in factories.py: every rank is that of the matrix
FULL = {
    'attention': {'mode': 'lors', 'rank': 32},
    'offsets': {'mode': 'lors', 'rank': 24},
    'mixing_kernels': {'mode': 'lors', 'rank': 4, 'num_param_groups': 4},
    'mixing_out_proj': {'mode': 'lors', 'rank': 32},
    'ffn': {'mode': 'lors', 'rank': 16},
}


def dense() -> AdaMixerDecoder:
    model = decoder(stacks={})
    randomise(model)
    return model


def test_every_step_is_reached_and_the_state_fits() -> None:
    stacks = {step: {'mode': 'lors', 'rank': 2} for step in STACKS}
    model = dense()
    reports = factorise_decoder(model, stacks, max_iters=2)
    built = decoder(stacks=stacks)
    built.load_state_dict(model.state_dict())
    assert set(reports) == {
        name.rsplit('.', 1)[0]
        for name in built.state_dict()
        if name.endswith('.shared')
    } | {'mixing.channel', 'mixing.spatial'}


def test_full_rank_reproduces_the_decoder() -> None:
    """Static parts, and generators of 16 x 16 and 6 x 4 kernels."""
    model = dense()
    other = copy.deepcopy(model)
    reports = factorise_decoder(other, FULL)
    static = {k: v for k, v in reports.items() if k != 'mixing.channel'}
    assert max(max(r.errors) for r in static.values()) < 1e-6
    for name, stack in other.named_modules():
        if name in reports and hasattr(stack, 'weight'):
            given = model.get_submodule(name)
            for i in range(3):
                torch.testing.assert_close(
                    stack.weight(i), given.weight(i), rtol=0, atol=1e-5
                )


@pytest.mark.parametrize('in_points', [16])
def test_full_rank_gives_the_same_detections(in_points: int) -> None:
    """Square kernels of one size: all of the mixing is exact."""
    sizes = {'in_points': in_points, 'out_points': 16}
    stacks = {**FULL, 'offsets': {'mode': 'lors', 'rank': 32}}
    stacks['mixing_kernels'] = {'mode': 'lors', 'rank': 16}
    model = decoder(stacks={}, **sizes)
    randomise(model)
    other = copy.deepcopy(model)
    factorise_decoder(other, stacks)
    feats, xyzr = pyramid(2), positions(2, 7)
    content = torch.randn(2, 7, 32)
    for found, expected in zip(
        other(feats, content, xyzr), model(feats, content, xyzr), strict=True
    ):
        torch.testing.assert_close(
            found.cls_logits, expected.cls_logits, rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(
            found.content, expected.content, rtol=1e-3, atol=1e-3
        )


def test_unknown_step() -> None:
    with pytest.raises(ValueError, match=r"stacks has \['mixing'\]: expected"):
        factorise_decoder(dense(), {'mixing': {'mode': 'shared'}})
