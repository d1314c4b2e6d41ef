# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from helpers.factories import decoder
from torch import nn

from lors_det.lors import MODES, StackedLinear, count_parameters


def test_parts_of_a_static_stack() -> None:
    config = {'mode': 'lors', 'rank': 2}
    count = count_parameters(nn.Sequential(StackedLinear(3, 10, 8, config)))
    assert (count.shared, count.private) == (80, 3 * 2 * 18)
    assert (count.dense, count.other) == (0, 24)


@pytest.mark.parametrize('mode', MODES)
def test_parts_add_up(mode: str) -> None:
    model = decoder(mode)
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert bool(count.shared) == (mode in ('shared', 'lors'))
    assert bool(count.private) == (mode in ('private', 'lors'))
