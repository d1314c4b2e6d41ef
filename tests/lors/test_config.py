# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from lors_det.lors import AdaptiveStack


@pytest.mark.parametrize('schedule', ['1', '12', '123', '1123', '112233'])
def test_schedules_of_any_depth(schedule: str) -> None:
    expected = [int(k) for k in schedule]
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': 'rising'}
    for _ in range(2):
        stack = AdaptiveStack(len(expected), 16, 2, 8, 8, config)
        assert stack.sizes == [(k, 2) for k in expected]
        config['num_param_groups'] = 'falling'
        expected.reverse()
