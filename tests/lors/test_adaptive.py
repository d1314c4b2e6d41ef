# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lors_det.lors import MODES, AdaptiveStack

SIZES = (3, 16, 2, 6, 5)  # layers, query, groups, rows, cols
CONFIG = {'rank': [1, 2, 3], 'num_param_groups': [1, 1, 2]}


def stack(mode: str, **changes: object) -> AdaptiveStack:
    return AdaptiveStack(*SIZES, {'mode': mode, **CONFIG, **changes})


def randomise(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)


def definition(layers: AdaptiveStack, query: Tensor, i: int) -> Tensor:
    """The matrices of one query and layer, by loops over groups and terms."""
    num_groups, rows, cols = layers.num_groups, layers.rows, layers.cols
    out = torch.zeros(num_groups, rows, cols, dtype=query.dtype)
    for generator in (
        [layers.shared] if layers.shared else layers.dense[i:][:1]
    ):
        flat = generator.weight @ query + generator.bias
        out = out + flat.view(num_groups, rows, cols)
    if str(i) in layers.private_E:
        b, a = layers.private_B[str(i)], layers.private_A[str(i)]
        num_terms, r = b.shape[1], b.shape[3]
        generator = layers.private_E[str(i)]
        flat = generator.weight @ query + generator.bias
        e = flat.view(num_groups, num_terms, r, r)
        for g in range(num_groups):
            for k in range(num_terms):
                out[g] = out[g] + b[g, k] @ e[g, k] @ a[g, k]
    return out


@pytest.mark.parametrize('mode', MODES)
def test_forward_is_the_definition(mode: str) -> None:
    layers = stack(mode).double()
    randomise(layers)
    query = torch.randn(2, 4, 16, dtype=torch.float64)
    for i in range(3):
        found = layers(query, i)
        assert found.shape == (2, 4, 2, 6, 5)
        weight, bias = layers.summed_generator(i)
        summed = (query @ weight.mT + bias).view(found.shape)
        for b in range(2):
            for n in range(4):
                expected = definition(layers, query[b, n], i)
                torch.testing.assert_close(found[b, n], expected)
                torch.testing.assert_close(summed[b, n], expected)


@pytest.mark.parametrize('mode', MODES)
def test_under_autocast(mode: str) -> None:
    layers = stack(mode)
    randomise(layers)
    query = torch.randn(2, 4, 16)
    expected = layers(query, 2)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast('cpu'):
            found = layers(query, 2)
        assert found.dtype == torch.bfloat16
        error = (found - expected).norm() / expected.norm()
        assert error < 0.02


@pytest.mark.parametrize('mode', MODES)
def test_parameter_count(mode: str) -> None:
    full = 2 * 6 * 5 * 17
    private = sum(
        2 * k * (r * (6 + 5) + r * r * 17) for k, r in [(1, 1), (1, 2), (2, 3)]
    )
    expected = {
        'dense': 3 * full,
        'shared': full,
        'private': private,
        'lors': full + private,
    }
    total = sum(p.numel() for p in stack(mode).parameters())
    assert total == expected[mode]


def test_rank_zero_equals_shared() -> None:
    shared = stack('shared')
    randomise(shared)
    lors = stack('lors', rank=0)
    lors.load_state_dict(shared.state_dict())
    query = torch.randn(1, 3, 16)
    for i in range(3):
        assert torch.equal(lors(query, i), shared(query, i))


def test_every_layer_starts_as_the_shared_one() -> None:
    layers = stack('lors')
    query = torch.randn(1, 3, 16)
    assert all(torch.equal(layers(query, 0), layers(query, i)) for i in (1, 2))


@pytest.mark.parametrize('mode', ['dense', 'shared', 'private', 'lors'])
def test_matrices_start_with_one_spread(mode: str) -> None:
    layers = AdaptiveStack(
        1, 64, 4, 40, 30,
        {'mode': mode, 'rank': 10, 'num_param_groups': 3},
    )  # fmt: skip
    spread = layers(torch.randn(1, 1, 64), 0).std() * (3 * 64) ** 0.5
    assert 0.8 < spread < 1.2


@pytest.mark.parametrize('mode', MODES)
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    layers = stack(mode)
    randomise(layers)
    query = torch.randn(1, 3, 16)
    sum(layers(query, i).sum() for i in range(3)).backward()
    assert all(p.grad.any() for p in layers.parameters())


def test_loading_another_rank_is_an_error() -> None:
    layers = stack('lors')
    other = stack('lors', num_param_groups=[1, 2, 2])
    with pytest.raises(ValueError, match='stack: the checkpoint') as error:
        layers.load_state_dict(other.state_dict(), strict=False)
    assert "1: '2 x 2'" in str(error.value)  # what it holds
    assert "1: '1 x 2'" in str(error.value)  # what would be right
