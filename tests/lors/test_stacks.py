# SPDX-License-Identifier: Apache-2.0
"""Both kinds of stacks, in all modes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from docs import method
from lors_det.lors import MODES, AdaptiveStack, StackedLinear

CONFIG = {'rank': [1, 2, 3], 'num_param_groups': [1, 1, 2]}
NUM_INPUTS = {StackedLinear: 10, AdaptiveStack: 16}
both_kinds = pytest.mark.parametrize('kind', NUM_INPUTS)
all_modes = pytest.mark.parametrize('mode', MODES)


def stack(kind: type, mode: str, key: str = 'stack', **changes: Any) -> Any:
    config = {'mode': mode, **CONFIG, **changes}
    if kind is StackedLinear:
        return StackedLinear(3, 10, 8, config, key=key)
    return AdaptiveStack(3, 16, 2, 6, 5, config, key=key)


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def inputs(kind: type, *sizes: int) -> Tensor:
    return torch.randn(*sizes, NUM_INPUTS[kind])


@all_modes
def test_forward_is_the_definition(mode: str) -> None:
    """That of docs/method.py, which builds each term at full size."""
    static = stack(StackedLinear, mode).double()
    adaptive = stack(AdaptiveStack, mode).double()
    randomise(static)
    randomise(adaptive)
    x = inputs(StackedLinear, 4).double()
    query = inputs(AdaptiveStack, 2, 4).double()
    for i in range(3):
        weight = method.static_weight(static, i)
        torch.testing.assert_close(static.weight(i), weight)
        torch.testing.assert_close(static(x, i), method.linear(static, x, i))
        expected = method.adaptive_weight(adaptive, query, i)
        assert expected.shape == (2, 4, 2, 6, 5)
        torch.testing.assert_close(adaptive(query, i), expected)
        weight, bias = adaptive.summed_generator(i)
        summed = (query @ weight.mT + bias).view(expected.shape)
        torch.testing.assert_close(summed, expected)


@all_modes
def test_many_queries_are_many_single_ones(mode: str) -> None:
    """With more queries than their size, terms go to the generator."""
    layers = stack(AdaptiveStack, mode).double()
    randomise(layers)
    query = inputs(AdaptiveStack, 20).double().requires_grad_()
    wanted = [query, *layers.parameters()]
    found, gradients = [], []
    for parts in (query[None], query[:, None]):
        found.append(torch.cat([layers(part, 2) for part in parts]))
        loss = found[-1].square().sum()
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        gradients.append([x for x in grads if x is not None])
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@all_modes
def test_generating_under_autocast(mode: str) -> None:
    layers = stack(AdaptiveStack, mode)
    randomise(layers)
    query = inputs(AdaptiveStack, 2, 4)
    expected = layers(query, 2)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast('cpu'):
            found = layers(query, 2)
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() / expected.norm() < 0.02


@both_kinds
def test_what_equals_the_shared_weight(kind: type) -> None:
    """Rank 0; and every layer in the beginning."""
    shared, lors = stack(kind, 'shared'), stack(kind, 'lors', rank=0)
    randomise(shared)
    lors.load_state_dict(shared.state_dict())
    fresh, x = stack(kind, 'lors'), inputs(kind, 3)
    for i in range(3):
        assert torch.equal(lors(x, i), shared(x, i))
        assert torch.equal(fresh(x, i), fresh(x, 0))


@all_modes
def test_weights_start_with_one_spread(mode: str) -> None:
    """That of a dense weight, U(-1 / sqrt(inputs), 1 / sqrt(inputs))."""
    config = {'mode': mode, 'rank': 10, 'num_param_groups': 3}
    static = StackedLinear(1, 400, 300, config)
    static.reset_parameters()  # a second time changes nothing in law
    spread = static.weight(0).std() * (3 * 400) ** 0.5
    assert 0.9 < spread < 1.1
    adaptive = AdaptiveStack(1, 64, 4, 40, 30, config)
    adaptive.reset_parameters()
    spread = adaptive(torch.randn(1, 1, 64), 0).std() * (3 * 64) ** 0.5
    assert 0.8 < spread < 1.2


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(
    ('kind', 'other', 'holds'),
    [
        (StackedLinear, 'deeper', '4 layers'),
        (StackedLinear, {'rank': [1, 2, 4]}, "2: '8'"),
        (StackedLinear, {'mode': 'dense'}, "mode 'dense'"),
        (StackedLinear, {'mode': 'shared'}, "mode 'shared'"),
        (StackedLinear, {'mode': 'private'}, "mode 'private'"),
        (AdaptiveStack, {'num_param_groups': [1, 2, 2]}, "1: '2 x 2'"),
    ],
)
def test_loading_another_layout_is_an_error(
    kind: type, other: Any, holds: str, strict: bool
) -> None:
    """The message has what the checkpoint holds and what would be right."""
    layers = stack(kind, 'lors', 'decoder.stacks.ffn')
    if other == 'deeper':
        given = StackedLinear(4, 10, 8, {'mode': 'lors', 'rank': 1})
    else:
        given = stack(kind, **{'mode': 'lors', **other})
    with pytest.raises(ValueError, match=r'decoder.stacks.ffn') as error:
        layers.load_state_dict(given.state_dict(), strict=strict)
    third = {StackedLinear: '6', AdaptiveStack: '2 x 3'}[kind]
    assert holds in str(error.value)
    assert f"2: '{third}'}}" in str(error.value)
    assert "mode 'lors', 3 layers, ranks {0: " in str(error.value)


def test_loading_other_parts_leaves_a_stack_as_it_is() -> None:
    layers = stack(StackedLinear, 'lors')
    before = copy.deepcopy(layers.state_dict())
    layers.load_state_dict({'backbone.weight': torch.zeros(1)}, strict=False)
    torch.testing.assert_close(layers.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('mode', ['private', 'lors'])
@pytest.mark.parametrize('num_rows', [1, 3, 4, 40])
def test_unmerged_where_that_is_cheaper(
    mode: str, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = StackedLinear(1, 8, 6, {'mode': mode, 'rank': 2}).double()
    randomise(layers)
    x = torch.randn(num_rows, 8, dtype=torch.float64)
    chosen = layers.use_unmerged(num_rows, 0)
    outputs, counts = {}, {}
    for unmerged in (False, True):
        with (
            monkeypatch.context() as patch,
            FlopCounterMode(display=False) as counter,
        ):
            patch.setattr(layers, 'use_unmerged', lambda *_, u=unmerged: u)
            outputs[unmerged] = layers(x, 0)
        counts[unmerged] = counter.get_total_flops()
    torch.testing.assert_close(outputs[True], outputs[False])
    assert counts[chosen] == min(counts.values()), counts
