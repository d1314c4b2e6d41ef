# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from helpers.factories import decoder, positions, pyramid, randomise

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.factorise import factorise_decoder
from lors_det.adamixer.settings import STACKS


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


def test_full_rank_gives_the_same_detections() -> None:
    """Square kernels of one size: all of the mixing is exact."""
    ranks = {
        'attention': 32, 'offsets': 32, 'mixing_kernels': 16,
        'mixing_out_proj': 32, 'ffn': 16,
    }  # fmt: skip
    model = decoder(stacks={}, in_points=16, out_points=16)
    randomise(model)
    other = copy.deepcopy(model)
    reports = factorise_decoder(
        other, {step: {'mode': 'lors', 'rank': r} for step, r in ranks.items()}
    )
    assert max(max(r.errors) for r in reports.values()) < 1e-6
    feats, xyzr = pyramid(2), positions(2, 7)
    content = torch.randn(2, 7, 32)
    outputs = other(feats, content, xyzr), model(feats, content, xyzr)
    for found, expected in zip(*outputs, strict=True):
        for name in ('cls_logits', 'content'):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name),
                rtol=1e-3, atol=1e-3,
            )  # fmt: skip


def test_unknown_step() -> None:
    with pytest.raises(ValueError, match=r"stacks has \['mixing'\]: expected"):
        factorise_decoder(dense(), {'mixing': {'mode': 'shared'}})
