# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import pytest
from helpers.factories import decoder, decoder_config, randomise

from lors_det.adamixer.allocate import (
    allocate_ranks,
    count_decoder,
    lowest_stacks,
)
from lors_det.adamixer.factorise import factorise_decoder, stacks_of
from lors_det.lors import FitReport

MODULES = [
    'mixing.channel', 'mixing.spatial', 'mixing.out_proj', 'ffn.fc1', 'ffn.fc2'
]  # fmt: skip
STEPS = ('mixing_kernels', 'mixing_out_proj', 'ffn')


def curves_of(mode: str) -> dict[str, FitReport]:
    """The errors of all ranks, of a decoder whose stages differ in theirs."""
    model = decoder(stacks={})
    randomise(model)
    stacks = {step: {'mode': mode, 'rank': 1} for step in STEPS}
    for name in (n for step in STEPS for n in stacks_of(step, MODULES)):
        dense = model.get_submodule(name).dense
        for i, layer in enumerate(dense):
            (layer if name in MODULES[2:] else layer.weight).data *= 4**i
    return factorise_decoder(model, stacks, max_iters=0)


def objective(reports: dict[str, FitReport], stacks: dict[str, Any]) -> float:
    """Sum of the squared relative errors."""
    total = 0.0
    for step, config in stacks.items():
        for name in stacks_of(step, reports):
            for i, curve in enumerate(reports[name].curves):
                ranks = config['rank']
                rank = ranks if isinstance(ranks, int) else ranks[i]
                total += curve[rank] ** 2
    return total


@pytest.mark.parametrize('mode', ['lors', 'private'])
def test_allocated_ranks_beat_one_rank_for_all(mode: str) -> None:
    reports = curves_of(mode)
    for rank in (2, 3, 4):
        uniform = {step: {'mode': mode, 'rank': rank} for step in STEPS}
        settings = decoder_config(stacks=uniform)
        budget = count_decoder(settings)
        stacks = allocate_ranks(settings, reports, budget)
        built = decoder(stacks=stacks)
        parameters = sum(p.numel() for p in built.parameters())
        assert parameters <= budget
        # What is left would not pay for the next rank of the largest step.
        assert parameters > 0.97 * budget
        assert objective(reports, stacks) < objective(reports, uniform)
        assert len(stacks['ffn']['rank']) == 3


def test_the_smallest_budget() -> None:
    stacks = {
        'ffn': {'mode': 'shared'},
        'attention': {'mode': 'private', 'rank': 5},
        'mixing_out_proj': {'mode': 'lors', 'rank': 7, 'num_param_groups': 2},
    }
    settings = decoder_config(stacks=stacks)
    lowest = lowest_stacks(stacks)
    smallest = count_decoder({**settings, 'stacks': lowest})
    model = decoder(stacks={})
    randomise(model)
    reports = factorise_decoder(copy.deepcopy(model), stacks, max_iters=0)
    chosen = allocate_ranks(settings, reports, smallest)
    assert count_decoder({**settings, 'stacks': chosen}) == smallest
    assert chosen['mixing_out_proj']['rank'] == [0, 0, 0]
    assert chosen['attention']['rank'] == [1, 1, 1]
    assert chosen['ffn'] == lowest['ffn']
    assert chosen['ffn']['mode'] == 'shared'
    with pytest.raises(ValueError, match=r'budget=\d+: expected at least \d+'):
        allocate_ranks(settings, reports, smallest - 1)
