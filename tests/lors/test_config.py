# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest

from lors_det.lors import AdaptiveStack, StackedLinear
from lors_det.lors.config import check_at_least, per_layer, rising


def test_a_scalar_broadcasts_and_a_list_stays() -> None:
    assert per_layer(2, 3, 'rank') == [2, 2, 2]
    assert per_layer([1, 2, 3], 3, 'rank') == [1, 2, 3]
    assert per_layer((1, 2), 2, 'rank') == [1, 2]


@pytest.mark.parametrize(
    ('config', 'error', 'message'),
    [
        (
            {'mode': 'lora'},
            ValueError,
            r"decoder.x.mode='lora': expected one of 'dense'",
        ),
        (
            {'mode': 'lors', 'rank': [4, 4]},
            ValueError,
            r'decoder.x.rank=\[4, 4\] has 2 entries: expected one value, or '
            r'one for each of the 3 layers',
        ),
        (
            {'mode': 'lors', 'rank': -1},
            ValueError,
            r'decoder.x.rank=-1: expected values from 0 to 8',
        ),
        (
            {'mode': 'lors', 'rank': 9},
            ValueError,
            r'decoder.x.rank=9: expected values from 0 to 8',
        ),
        (
            {'mode': 'private', 'rank': 0},
            ValueError,
            r'decoder.x.rank=0: expected values from 1 to 8',
        ),
        (
            {'mode': 'lors', 'rank': 2.0},
            TypeError,
            r'decoder.x.rank=2.0: expected an integer',
        ),
        (
            {'mode': 'lors', 'rank': '2'},
            TypeError,
            r"decoder.x.rank='2': expected an integer",
        ),
        (
            {'mode': 'lors', 'rank': 2, 'num_param_groups': [1, 0, 1]},
            ValueError,
            r'decoder.x.num_param_groups=\[1, 0, 1\]: expected values of '
            r'at least 1',
        ),
        (
            {'mode': 'lors', 'ranks': 2},
            TypeError,
            r"decoder.x=.*'ranks'.*expected a dict with keys out of "
            r"\['mode', 'rank', 'num_param_groups'\]",
        ),
        ('lors', TypeError, r"decoder.x='lors': expected a dict"),
    ],
)
@pytest.mark.parametrize(
    'build',
    [
        lambda config, key: StackedLinear(3, 10, 8, config, key=key),
        lambda config, key: AdaptiveStack(3, 16, 2, 8, 9, config, key=key),
    ],
    ids=['static', 'adaptive'],
)
def test_wrong_values(
    build: Callable[[object, str], object],
    config: object,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        build(config, 'decoder.x')


@pytest.mark.parametrize('value', [0, -3])
def test_sizes_are_positive(value: int) -> None:
    with pytest.raises(ValueError, match=f'num_layers={value}: expected'):
        StackedLinear(value, 10, 8)
    with pytest.raises(TypeError, match='rows=True'):
        check_at_least(1, rows=True)


@pytest.mark.parametrize(
    ('depth', 'schedule'),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (4, [1, 1, 2, 3]),
        (6, [1, 1, 2, 2, 3, 3]),
        (9, [1, 1, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_schedules_of_any_depth(depth: int, schedule: list[int]) -> None:
    assert rising(depth) == schedule
    for name, expected in (('rising', schedule), ('falling', schedule[::-1])):
        config = {'mode': 'lors', 'rank': 2, 'num_param_groups': name}
        stack = AdaptiveStack(depth, 16, 2, 8, 8, config)
        assert stack.sizes == [(k, 2) for k in expected]


def test_unknown_schedule() -> None:
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': 'up'}
    with pytest.raises(
        ValueError,
        match=r"x.num_param_groups='up': expected an integer, a list, or one "
        r"of \['falling', 'rising'\]",
    ):
        StackedLinear(3, 8, 8, config, key='x')
