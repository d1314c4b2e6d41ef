# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch

from lors_det.convert.weights import read_weights
from lors_det.errors import UsageError

PLAIN = {'a.b': torch.zeros(2), 'a.c': torch.zeros(3), 'n': torch.tensor(1)}
MEAN = torch.ones(2)


def distributed(state: dict[str, Any]) -> dict[str, Any]:
    return {f'module.{name}': value for name, value in state.items()}


@pytest.mark.parametrize(
    'checkpoint',
    [
        PLAIN,
        {'state_dict': PLAIN},
        {'state_dict': distributed(PLAIN)},
        {'meta': {}, 'state_dict': PLAIN, 'optimizer': {'state': {}}},
        {'state_dict': {**PLAIN, 'ema_a_b': MEAN}},
        {'state_dict': distributed({**PLAIN, 'ema_a_b': MEAN})},
        {'state_dict': PLAIN, 'state_dict_ema': {'a.b': MEAN}},
        {'state_dict': PLAIN, 'ema_state_dict': {'module.a.b': MEAN}},
    ],
)
def test_plain_and_averaged_weights(checkpoint: dict[str, Any]) -> None:
    state, dropped = read_weights(checkpoint, 'SRC')
    assert state.keys() == PLAIN.keys()
    assert all(state[name] is PLAIN[name] for name in PLAIN)
    if 'optimizer' in checkpoint:
        assert dropped == ['optimizer: not converted']
    if 'ema' in str(checkpoint):
        assert '1 averaged tensors (EMA): not converted; --ema' in dropped[-1]
        state, _ = read_weights(checkpoint, 'SRC', ema=True)
        assert state.keys() == PLAIN.keys()
        assert state['a.b'] is MEAN
        assert state['a.c'] is PLAIN['a.c']


@pytest.mark.parametrize('ema', [False, True])
def test_mmengine_swaps_averaged_weights(ema: bool) -> None:
    """Its EMAHook saves the averaged weights as the plain ones."""
    hook = {'steps': torch.tensor(7), 'module.a.b': torch.zeros(2)}
    checkpoint = {'state_dict': {'a.b': MEAN}, 'ema_state_dict': hook}
    state, dropped = read_weights(checkpoint, 'SRC', ema)
    assert state['a.b'] is MEAN
    assert 'state_dict has the averaged ones' in dropped[0]


@pytest.mark.parametrize(
    ('checkpoint', 'ema', 'message'),
    [
        ({'model': PLAIN}, False, 'SRC has no weights: no state_dict, no'),
        ({'state_dict': [1]}, False, 'SRC has no weights'),
        ({'state_dict': PLAIN}, True, '--ema: SRC has no averaged weights'),
    ],
)
def test_no_weights(
    checkpoint: dict[str, Any], ema: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_weights(checkpoint, 'SRC', ema)
