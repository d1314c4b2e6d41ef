# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby

import pytest
import torch
from torch import Tensor

from lors_det.analysis import timing


def test_rounds_alternate() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> Callable[[], object]:
        def timed() -> None:
            order.append(name)
            time.sleep(seconds)

        return timed

    calls = {'a': call('a', 0.0), 'b': call('b', 0.01)}
    seconds = timing.measure(calls, rounds=3)
    assert [name for name, _ in groupby(order)] == ['b', 'a', 'b', 'a']
    assert [len(s) for s in seconds.values()] == [3, 3]
    assert min(seconds['a']) < 0.01 <= min(seconds['b'])


def test_ratios_are_taken_round_by_round() -> None:
    """One slow round of both changes nothing."""
    found = timing.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == timing.Spread(2.0, 2.0, 2.0)
    assert timing.Spread.of([1, 2, 3, 4, 5]) == timing.Spread(3, 2, 4)
    assert timing.Spread.of([7]) == timing.Spread(7, 7, 7)
    assert timing.Spread(1.5, 1.25, 2).text() == '1.50 (1.25-2.00)'
    assert timing.Spread.of([0.007]).text(0, 1e3) == '7'


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_peak_of_a_chain(device: str) -> None:
    """Two of three tensors live at once; inputs and views count nothing."""
    x = torch.zeros(100, device=device)

    def chain() -> Tensor:
        y = x + 1
        y = y.view(10, 10) + 1
        return x.view(10, 10) + y

    assert timing.peak_bytes(chain, device) == 2 * 400

    def steps() -> Tensor:
        y = x
        for _ in range(10):
            y = y + 1
        return torch.cat([y, y])  # a list of tensors

    assert timing.peak_bytes(steps, device) == 3 * 400


def test_peak_sees_the_backward_pass() -> None:
    x = torch.ones(100, requires_grad=True)

    def deep(number: int) -> int:
        def call() -> None:
            y = x
            for _ in range(number):
                y = y.exp()
            y.sum().backward()

        x.grad = torch.zeros(100)
        return timing.peak_bytes(call)

    assert deep(20) - deep(10) == 10 * 400
