# SPDX-License-Identifier: Apache-2.0
"""Give every step and stage of a decoder a rank, under one budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.factorise import stacks_of
from lors_det.lors import FitReport, StackConfig
from lors_det.lors.allocate import allocate

Config = Mapping[str, Any]


def allocate_ranks(
    decoder: Config, reports: Mapping[str, FitReport], budget: int
) -> dict[str, dict[str, Any]]:
    """Choose the ranks of a decoder that lose little for their parameters.

    What is made small is the sum over all stages and weights of the squared
    relative error, which the singular values of the residuals tell for every
    rank (`FitReport.curves`). The chosen stacks have one term (K = 1): that
    each stage has a rank of its own replaces the schedule of K. The weights
    of one step have their rank in common, as in any config.

    Args:
        decoder: Arguments of `AdaMixerDecoder`. Of its stacks the modes are
            read; ranks and K are what is chosen.
        reports: Of a fit of the dense decoder, by the name of the stack.
        budget: Largest number of the decoder's parameters.

    Returns:
        The stacks, with a rank for each stage.

    Raises:
        ValueError: If the decoder of `lowest_stacks` has more parameters.
    """
    lowest = lowest_stacks(decoder['stacks'])
    smallest = count_decoder({**decoder, 'stacks': lowest})
    names = {
        step: stacks_of(step, reports)
        for step, config in lowest.items()
        if config['mode'] in ('lors', 'private')
    }
    steps, costs, errors = [], [], []
    for step in names:
        curves = [reports[name].curves for name in names[step]]
        ranks = range(lowest[step]['rank'], min(len(c[0]) for c in curves))
        stages = range(len(curves[0]))
        added = []  # parameters of one stage
        for rank in ranks:
            stacks = {**lowest, step: {**lowest[step], 'rank': rank}}
            count = count_decoder({**decoder, 'stacks': stacks})
            added.append((count - smallest) // len(stages))
        for stage in stages:
            steps.append(step)
            costs.append(added)
            errors.append(
                [sum(c[stage][rank] ** 2 for c in curves) for rank in ranks]
            )
    chosen = allocate(costs, errors, budget - smallest)
    for step in names:
        lowest[step]['rank'] = [
            lowest[step]['rank'] + option
            for name, option in zip(steps, chosen, strict=True)
            if name == step
        ]
    return lowest


def lowest_stacks(stacks: Config) -> dict[str, dict[str, Any]]:
    """Return stacks of the same modes that have the fewest parameters.

    They have no private part, or one of rank 1 where nothing is shared.

    Args:
        stacks: A `StackConfig` or its fields by the name of a step.
    """
    lowest = {}
    for step, config in stacks.items():
        mode = StackConfig.parse(config, f'decoder.stacks.{step}').mode
        rank = int(mode == 'private')
        lowest[step] = {'mode': mode, 'rank': rank, 'num_param_groups': 1}
    return lowest


def count_decoder(decoder: Config) -> int:
    """Count the parameters of a decoder without making its weights.

    Args:
        decoder: Arguments of `AdaMixerDecoder`.
    """
    settings = {key: v for key, v in decoder.items() if key != 'type'}
    with torch.device('meta'):
        built = AdaMixerDecoder(**settings)
    return sum(parameter.numel() for parameter in built.parameters())
