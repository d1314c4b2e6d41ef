# SPDX-License-Identifier: Apache-2.0
"""What a loop is compared with, and that a command which fails is no time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.end_to_end import WRONG, AgainstTheModel, waiting


def test_rounds() -> None:
    """The model alone repeats the batches of its round, and no others."""
    seen: list[int] = []
    runner: Any = SimpleNamespace(model=SimpleNamespace(test_step=seen.append))
    hook = AgainstTheModel(steps=2)
    hook.before_test_epoch(runner)
    for number in range(5):
        hook.after_test_iter(runner, number, number, None)
    assert seen == [0, 1, 2, 3]
    assert len(hook.loop) == len(hook.alone) == 2


def test_commands() -> None:
    rows = waiting(
        {'nothing': ['-c', ''], WRONG: ['-c', 'raise SystemExit(1)']}, 2
    )
    assert [row[0] for row in rows] == ['nothing', WRONG]
    assert rows[0][1] == '1.00'
    with pytest.raises(SystemExit, match=r'^error: broken: why$'):
        waiting({'broken': ['-c', 'raise SystemExit("why")']}, 1)
    with pytest.raises(SystemExit, match=f'^error: {WRONG}: '):
        waiting({WRONG: ['-c', '']}, 1)
