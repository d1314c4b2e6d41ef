# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from lors_det.lors import AdaptiveStack


@pytest.mark.parametrize('rank', [2, [1, 2, 3], (3, 0, 1)])
def test_one_value_or_one_per_layer(rank: Any) -> None:
    stack = AdaptiveStack(3, 16, 2, 8, 9, {'mode': 'lors', 'rank': rank})
    ranks = rank if isinstance(rank, (list, tuple)) else [rank] * 3
    assert stack.sizes == [(1, r) if r else (0, 0) for r in ranks]


@pytest.mark.parametrize('schedule', ['1', '12', '123', '1123', '112233'])
def test_schedules_of_any_depth(schedule: str) -> None:
    expected = [int(k) for k in schedule]
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': 'rising'}
    for _ in range(2):
        stack = AdaptiveStack(len(expected), 16, 2, 8, 8, config)
        assert stack.sizes == [(k, 2) for k in expected]
        config['num_param_groups'] = 'falling'
        expected.reverse()
