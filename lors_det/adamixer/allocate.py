# SPDX-License-Identifier: Apache-2.0
"""Give every step and stage of a decoder a rank, under one budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import nn

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.factorise import stacks_of
from lors_det.lors import FitReport, StackConfig
from lors_det.lors.allocate import allocate
from lors_det.lors.stacks import Stack

Config = Mapping[str, Any]


def allocate_ranks(
    decoder: Config, reports: Mapping[str, FitReport], budget: int
) -> dict[str, dict[str, Any]]:
    """Choose the ranks of a decoder that lose little for their parameters.

    What is made small is the sum over all stages and weights of the squared
    relative error. For one term the singular values of the residuals tell it
    for every rank (`FitReport.curves`); of K terms each is taken to leave the
    same share of what the others left, ``e(0)^2 (e(r)^2 / e(0)^2)^K``. The
    weights of one step have their rank in common, as in any config.

    Args:
        decoder: Arguments of `AdaMixerDecoder`. Of its stacks mode and K are
            read; the ranks are what is chosen.
        reports: Of a fit of the dense decoder, by the name of the stack.
        budget: Largest number of the decoder's parameters.

    Returns:
        The stacks, with a rank for each stage.

    Raises:
        ValueError: If the decoder of `lowest_stacks` has more parameters.
    """
    lowest = lowest_stacks(decoder['stacks'])
    fixed = count_decoder({**decoder, 'stacks': lowest})
    dense = _build({**decoder, 'stacks': {}})
    units, costs, errors = [], [], []
    for step, config in lowest.items():
        if config['mode'] not in ('lors', 'private'):
            continue
        names = stacks_of(step, reports)
        highest = min(len(reports[name].curves[0]) for name in names) - 1
        ranks = range(config['rank'], highest + 1)
        modules = [cast(Stack, dense.get_submodule(name)) for name in names]
        with torch.device('meta'):
            stacks = [
                [module.like({**config, 'rank': rank}) for module in modules]
                for rank in ranks
            ]
        terms = StackConfig(**{**config, 'rank': 1}).private_sizes(
            dense.num_stages, 1, step
        )
        for stage, (k, _) in enumerate(terms):
            sizes = [sum(_private(s, stage) for s in each) for each in stacks]
            fixed -= sizes[0]
            units.append((step, stage))
            costs.append(sizes)
            errors.append(
                [
                    sum(_error(reports[n].curves[stage], r, k) for n in names)
                    for r in ranks
                ]
            )
    chosen = allocate(costs, errors, budget - fixed)
    allocated = {step: dict(config) for step, config in lowest.items()}
    for step in {step for step, _ in units}:
        allocated[step]['rank'] = [
            lowest[step]['rank'] + option
            for (name, _), option in zip(units, chosen, strict=True)
            if name == step
        ]
    return allocated


def lowest_stacks(stacks: Config) -> dict[str, dict[str, Any]]:
    """Return stacks of the same modes that have the fewest parameters.

    They have no private part, or one of rank 1 where nothing is shared.

    Args:
        stacks: A `StackConfig` or its fields by the name of a step.
    """
    lowest = {}
    for step, each in stacks.items():
        config = StackConfig.parse(each, f'decoder.stacks.{step}')
        rank = int(config.mode == 'private')
        lowest[step] = {**asdict(config), 'rank': rank}
    return lowest


def count_decoder(decoder: Config) -> int:
    """Count the parameters of a decoder without making its weights.

    Args:
        decoder: Arguments of `AdaMixerDecoder`.
    """
    return sum(parameter.numel() for parameter in _build(decoder).parameters())


def _build(decoder: Config) -> AdaMixerDecoder:
    settings = {key: value for key, value in decoder.items() if key != 'type'}
    with torch.device('meta'):
        return AdaMixerDecoder(**settings)


def _private(stack: nn.Module, layer: int) -> int:
    """Count the parameters of the private part of one layer."""
    return sum(
        parameter.numel()
        for name, parameter in stack.named_parameters()
        if re.match(rf'private_\w\.{layer}\b', name)
    )


def _error(curve: Sequence[float], rank: int, k: int) -> float:
    """Return the squared error of K terms of a rank."""
    return curve[rank] ** 2 * (curve[rank] / (curve[0] or 1)) ** (2 * (k - 1))
