# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lors_det.analysis import timing


def test_rounds_alternate_and_the_preparation_is_not_timed() -> None:
    order: list[tuple[str, int]] = []

    def variant(name: str, seconds: float) -> timing.Prepare:
        def prepare(number: int) -> Callable[[], object]:
            time.sleep(0.02)
            order.append((name, number))
            return lambda: time.sleep(seconds)

        return prepare

    variants = {'a': variant('a', 0.0), 'b': variant('b', 0.01)}
    seconds = timing.measure(variants, repeats=3, warm_up=1)
    assert order == [
        ('b', 0), ('a', 0), ('a', 1), ('b', 1), ('b', 2), ('a', 2),
        ('a', 3), ('b', 3),
    ]  # fmt: skip
    assert [len(s) for s in seconds.values()] == [3, 3]
    assert min(seconds['a']) < 0.01 <= min(seconds['b'])


def test_the_garbage_collector_is_left_as_it_was() -> None:
    import gc

    def fails(number: int) -> Callable[[], object]:
        raise RuntimeError('no inputs')

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match='no inputs'):
        timing.measure({'a': fails}, repeats=1)
    assert gc.isenabled()


def test_ratios_are_taken_round_by_round() -> None:
    """One slow round of both changes nothing."""
    found = timing.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0])
    assert found == timing.Spread(2.0, 2.0, 2.0)
    assert timing.Spread.of([1, 2, 3, 4, 5]) == timing.Spread(3, 2, 4)
    assert timing.Spread.of([7]) == timing.Spread(7, 7, 7)


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
        return y

    assert timing.peak_bytes(steps, device) == 2 * 400


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


def test_saved_bytes() -> None:
    """Results of exp, once; not parameters, nor what is recomputed."""
    w = torch.ones(100, requires_grad=True)

    def forward() -> Tensor:
        y = (w * 2).exp()
        return y * y.view(100) * w  # saves y twice, w, y * y

    assert timing.saved_bytes(forward, [w]) == 2 * 400
    assert timing.saved_bytes(forward, []) == 3 * 400

    def recomputed() -> Tensor:
        x = w * 2
        out: Tensor = checkpoint(
            lambda t: t.exp().exp(), x, use_reentrant=False
        )
        return out

    assert timing.saved_bytes(recomputed, [w]) == 400


def test_multiply_adds() -> None:
    a = torch.empty(3, 4, 5, device='meta')
    b = torch.empty(3, 5, 6, device='meta')
    assert timing.multiply_adds(lambda: a @ b) == 3 * 4 * 5 * 6
