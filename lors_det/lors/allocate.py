# SPDX-License-Identifier: Apache-2.0
"""Share a number of parameters out among weights."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(
    costs: Sequence[Sequence[int]],
    errors: Sequence[Sequence[float]],
    budget: int,
) -> list[int]:
    """Choose an option for every weight, with a small sum of errors.

    Greedy: all weights start with their cheapest option, and the step up, of
    one weight to any of its options, with the largest fall of the error per
    parameter is taken as long as one fits. Where all steps cost the same and
    the falls get smaller, as those of singular values do, no choice is
    better; else none is better by more than the fall of one step.

    Args:
        costs: Parameters of the options of every weight, rising.
        errors: Errors of the same options, falling.
        budget: Largest sum of the costs.

    Returns:
        Index of the chosen option, for every weight.

    Raises:
        ValueError: If the cheapest options cost more than the budget.
    """
    chosen = [0] * len(costs)
    left = budget - sum(options[0] for options in costs)
    if left < 0:
        raise ValueError(
            f'budget={budget}: expected at least {budget - left}, the sum of '
            'the cheapest options'
        )
    while True:
        best, step = 0.0, None
        for i, now in enumerate(chosen):
            for option in range(now + 1, len(costs[i])):
                cost = costs[i][option] - costs[i][now]
                fall = errors[i][now] - errors[i][option]
                if cost <= left and fall > best * cost:
                    best, step = fall / cost, (i, option, cost)
        if step is None:
            return chosen
        i, option, cost = step
        chosen[i] = option
        left -= cost
