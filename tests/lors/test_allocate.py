# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random

import pytest

from lors_det.lors.allocate import allocate

Table = list[list[float]]


def falling(random_: random.Random, length: int) -> list[float]:
    """What is left of a sum of squared singular values, largest first."""
    squares = sorted(random_.random() for _ in range(length))
    return list(itertools.accumulate(squares, initial=0.0))[::-1]


def total(table: Table, chosen: tuple[int, ...] | list[int]) -> float:
    return sum(row[i] for row, i in zip(table, chosen, strict=True))


def least(costs: Table, errors: Table, budget: int) -> float:
    """The smallest sum of errors, by trying all choices."""
    choices = itertools.product(*(range(len(row)) for row in costs))
    return min(
        total(errors, chosen)
        for chosen in choices
        if total(costs, chosen) <= budget
    )


@pytest.mark.parametrize('seed', range(8))
def test_steps_of_one_cost_are_shared_out_best(seed: int) -> None:
    r = random.Random(seed)
    errors = [falling(r, 4) for _ in range(4)]
    costs = [[10 + 3 * i for i in range(5)] for _ in errors]
    for budget in range(40, 90, 7):
        chosen = allocate(costs, errors, budget)
        assert total(costs, chosen) <= budget
        assert total(errors, chosen) == pytest.approx(
            least(costs, errors, budget)
        )


@pytest.mark.parametrize('seed', range(8))
def test_steps_of_any_cost(seed: int) -> None:
    """Within the budget, and worse than the best by one step at most."""
    r = random.Random(seed)
    errors = [falling(r, n) for n in (2, 3, 4, 4)]
    costs = [
        sorted(r.sample(range(100), len(row))) for row in errors
    ]  # nor are the falls per parameter sorted
    largest = max(row[0] - row[-1] for row in errors)
    everything = sum(row[-1] for row in costs)
    smallest = sum(row[0] for row in costs)
    for budget in range(smallest, everything + 1, 20):
        chosen = allocate(costs, errors, budget)
        assert total(costs, chosen) <= budget
        found = total(errors, chosen)
        assert found <= least(costs, errors, budget) + largest
    best = total(errors, allocate(costs, errors, everything))
    assert best == pytest.approx(sum(row[-1] for row in errors))


def test_a_step_over_a_flat_part() -> None:
    """What falls only later is not missed."""
    assert allocate([[0, 1, 2]], [[5.0, 5.0, 0.0]], 2) == [2]
    assert allocate([[0, 1, 2]], [[5.0, 5.0, 0.0]], 1) == [0]
    assert allocate([], [], 0) == []


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(ValueError, match='budget=4: expected at least 5'):
        allocate([[2, 4], [3, 4]], [[1.0, 0.0], [1.0, 0.0]], 4)
