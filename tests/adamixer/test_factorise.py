# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from helpers.factories import decoder, randomise

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


def test_unknown_step() -> None:
    with pytest.raises(ValueError, match=r"stacks has \['mixing'\]: expected"):
        factorise_decoder(dense(), {'mixing': {'mode': 'shared'}})
