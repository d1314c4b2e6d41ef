# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from lors_det.lors import AdaptiveStack, StackedLinear
from lors_det.lors.config import check_at_least


@pytest.mark.parametrize('rank', [2, [1, 2, 3], (3, 0, 1)])
def test_one_value_or_one_per_layer(rank: Any) -> None:
    stack = AdaptiveStack(3, 16, 2, 8, 9, {'mode': 'lors', 'rank': rank})
    ranks = rank if isinstance(rank, (list, tuple)) else [rank] * 3
    assert stack.sizes == [(1, r) if r else (0, 0) for r in ranks]


@pytest.mark.parametrize('kind', [StackedLinear, AdaptiveStack])
@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mode': 'lora'}, ".mode='lora': expected one of 'dense'"),
        (
            {'rank': [4, 4]},
            '.rank=[4, 4] has 2 entries: expected one value, or one for each '
            'of the 3 layers',
        ),
        ({'rank': -1}, '.rank=-1: expected values from 0 to 8'),
        ({'rank': 9}, 'ValueError: decoder.x.rank=9: expected values from 0'),
        ({'mode': 'private', 'rank': 0}, '.rank=0: expected values from 1 to'),
        ({'rank': 2.0}, 'TypeError: decoder.x.rank=2.0: expected values'),
        ({'rank': '2'}, "TypeError: decoder.x.rank='2': expected values"),
        (
            {'num_param_groups': [1, 0, 1]},
            '.num_param_groups=[1, 0, 1]: expected values of at least 1',
        ),
        (
            {'num_param_groups': 'up'},
            ".num_param_groups='up': expected an integer, a list, or one of "
            "['falling', 'rising']",
        ),
        (
            {'ranks': 2},
            "'ranks': 2}: expected a dict with keys out of ['mode', 'rank', "
            "'num_param_groups']",
        ),
        ('lors', "TypeError: decoder.x='lors': expected a dict"),
    ],
)
def test_wrong_values(kind: type, changes: Any, message: str) -> None:
    config = changes
    if isinstance(changes, dict):
        config = {'mode': 'lors', 'rank': 2, **changes}
    sizes = (3, 10, 8) if kind is StackedLinear else (3, 16, 2, 8, 9)
    with pytest.raises((TypeError, ValueError)) as error:
        kind(*sizes, config, key='decoder.x')
    assert str(error.value).startswith('decoder.x')
    assert message in f'{error.typename}: {error.value}'


@pytest.mark.parametrize('value', [0, -3])
def test_sizes_are_positive(value: int) -> None:
    with pytest.raises(ValueError, match=f'num_layers={value}: expected'):
        StackedLinear(value, 10, 8)
    with pytest.raises(TypeError, match='rows=True'):
        check_at_least(1, rows=True)


@pytest.mark.parametrize('schedule', ['1', '12', '123', '1123', '112233'])
def test_schedules_of_any_depth(schedule: str) -> None:
    expected = [int(k) for k in schedule]
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': 'rising'}
    for _ in range(2):
        stack = AdaptiveStack(len(expected), 16, 2, 8, 8, config)
        assert stack.sizes == [(k, 2) for k in expected]
        config['num_param_groups'] = 'falling'
        expected.reverse()
