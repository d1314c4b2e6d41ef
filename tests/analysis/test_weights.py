# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.factories import KERNELS, decoder, randomise
from torch import nn

from lors_det.analysis.weights import measure_stacks
from lors_det.lors import AdaptiveStack, StackedLinear

QUERIES = torch.randn(3, 10, 12, generator=torch.Generator().manual_seed(0))
RANKS = {'rank': 2, 'num_param_groups': [1, 2, 1]}


def stacks(mode: str) -> nn.ModuleDict:
    """A learnt and a generated weight of three stages."""
    config = {'mode': mode, **RANKS}
    model = nn.ModuleDict(
        {
            'static': StackedLinear(3, 12, 9, config),
            'adaptive': AdaptiveStack(3, 12, 2, 8, 9, config),
        }
    )
    randomise(model)
    return model


@pytest.mark.parametrize('name', ['static', 'adaptive'])
def test_equal_layers(name: str) -> None:
    for stage in measure_stacks(stacks('shared'), QUERIES)[name]:
        assert stage.private_share == 0
        assert stage.effective_rank == 0
        assert stage.explained_share == pytest.approx(1)
        assert stage.cosines == pytest.approx([1, 1, 1])


@pytest.mark.parametrize('name', ['static', 'adaptive'])
def test_the_rank_of_lors_is_found(name: str) -> None:
    found = measure_stacks(stacks('lors'), QUERIES)[name]
    for stage, terms in zip(found, RANKS['num_param_groups'], strict=True):
        rank = 2 * terms  # r K
        assert 1 < stage.effective_rank <= rank + 1e-3
        first, rest = stage.singular_values.split(
            [rank, len(stage.singular_values) - rank]
        )
        assert rest.max() < 1e-6 * first.min()


def test_shares_are_the_definition() -> None:
    model = stacks('lors')
    stack: Any = model['static']
    found = measure_stacks(model)
    assert list(found) == ['static']  # no queries, no generated weights
    weights = torch.stack([stack.weight(i) for i in range(3)]).detach()
    for i, stage in enumerate(found['static']):
        private = stack.private_B[str(i)] @ stack.private_A[str(i)]
        share = private.norm() / stack.shared.norm()
        assert stage.private_share == pytest.approx(share.item(), rel=1e-4)
        rest = (weights[i] - weights.mean(0)).norm() / weights[i].norm()
        assert stage.explained_share == pytest.approx(
            1 - rest.item() ** 2, rel=1e-4
        )
        cosines = nn.functional.cosine_similarity(
            weights.flatten(1), weights[i].flatten()[None]
        )
        assert stage.cosines == pytest.approx(cosines.tolist(), rel=1e-4)


def test_generated_share_is_that_of_the_stages_own_queries() -> None:
    model = stacks('lors')
    stack: Any = model['adaptive']
    for i, stage in enumerate(measure_stacks(model, QUERIES)['adaptive']):
        full = stack(QUERIES[i], i)
        shared = stack.shared(QUERIES[i]).view_as(full)
        share = (full - shared).norm() / shared.norm()
        assert stage.private_share == pytest.approx(share.item(), rel=1e-4)


def test_unrelated_layers() -> None:
    """A mean of N of them explains 1 / N of each; little is shared."""
    stack = StackedLinear(4, 200, 300)
    for stage in measure_stacks(nn.Sequential(stack))['0']:
        assert stage.private_share != stage.private_share  # nan
        assert stage.explained_share == pytest.approx(1 / 4, abs=0.02)
        assert stage.effective_rank > 150


def test_stacks_of_a_decoder_are_left_as_they_are() -> None:
    model = decoder('lors')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = measure_stacks(model, torch.randn(3, 5, 32))
    assert {'mixing.channel', 'mixing.out_proj', 'ffn.fc1'} <= set(found)
    assert len(found['mixing.channel']) == len(KERNELS['num_param_groups'])
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
