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
    (stack,) = count.stacks
    assert (stack.name, stack.mode, stack.shape) == ('0', 'lors', (8, 10))
    assert '| 0 | lors | 3 of 8 x 10 | 240 |' in str(count)


@pytest.mark.parametrize('mode', MODES)
def test_parts_add_up(mode: str) -> None:
    model = decoder(mode)
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters())
    dense = sum(p.numel() for p in decoder('dense').parameters())
    assert count.dense_total == dense
    assert count.reduction == pytest.approx(1 - count.total / dense)
    assert bool(count.shared) == (mode in ('shared', 'lors'))
    assert bool(count.private) == (mode in ('private', 'lors'))
