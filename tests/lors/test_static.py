# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lors_det.lors import MODES, StackedLinear

CONFIG = {'rank': [1, 2, 3], 'num_param_groups': [1, 1, 2]}


def stack(mode: str, **changes: object) -> StackedLinear:
    return StackedLinear(3, 10, 8, {'mode': mode, **CONFIG, **changes})


@pytest.mark.parametrize('mode', MODES)
def test_forward_is_the_definition(mode: str) -> None:
    layers = stack(mode).double()
    x = torch.randn(4, 10, dtype=torch.float64)
    for i in range(3):
        weight = torch.zeros(8, 10, dtype=torch.float64)
        for name, p in layers.named_parameters():
            if name == 'shared' or name == f'dense.{i}':
                weight = weight + p
        if f'private_A.{i}' in layers.state_dict():
            a = layers.private_A[str(i)]
            b = layers.private_B[str(i)]
            for row in range(len(a)):  # a sum of rank-one terms
                weight = weight + torch.outer(b[:, row], a[row])
        expected = torch.stack([weight @ v + layers.bias[i] for v in x])
        torch.testing.assert_close(layers(x, i), expected)


@pytest.mark.parametrize(
    ('mode', 'count'),
    [
        ('dense', 3 * 80),
        ('shared', 80),
        ('private', (1 + 2 + 6) * 18),
        ('lors', 80 + (1 + 2 + 6) * 18),
    ],
)
def test_parameter_count(mode: str, count: int) -> None:
    total = sum(p.numel() for p in stack(mode).parameters())
    assert total == count + 3 * 8


def test_rank_zero_equals_shared() -> None:
    shared = stack('shared')
    lors = stack('lors', rank=0)
    lors.load_state_dict(shared.state_dict())
    x = torch.randn(2, 10)
    for i in range(3):
        torch.testing.assert_close(lors(x, i), shared(x, i), rtol=0, atol=0)


def test_every_layer_starts_as_the_shared_one() -> None:
    layers = stack('lors')
    x = torch.randn(2, 10)
    assert all(torch.equal(layers(x, 0), layers(x, i)) for i in (1, 2))


def test_full_rank_represents_dense() -> None:
    dense = StackedLinear(2, 6, 6)
    lors = StackedLinear(2, 6, 6, {'mode': 'lors', 'rank': 6})
    with torch.no_grad():
        for i in range(2):
            residual = dense.weight(i) - lors.shared
            lors.private_A[str(i)].copy_(residual)
            lors.private_B[str(i)].copy_(torch.eye(6))
            lors.bias[i].copy_(dense.bias[i])
    x = torch.randn(5, 6)
    for i in range(2):
        torch.testing.assert_close(lors(x, i), dense(x, i), rtol=0, atol=1e-5)


@pytest.mark.parametrize('mode', MODES)
def test_reset_twice_equals_once_in_law(mode: str) -> None:
    layers = StackedLinear(2, 300, 200, {'mode': mode, 'rank': 20})

    def spreads() -> dict[str, Tensor]:
        return {k: v.std() for k, v in layers.state_dict().items()}

    once = spreads()
    layers.reset_parameters()
    layers.reset_parameters()
    twice = spreads()
    for name, value in once.items():
        torch.testing.assert_close(twice[name], value, rtol=0.1, atol=0)


def test_private_products_start_with_the_spread_of_dense() -> None:
    private = StackedLinear(1, 400, 300, {'mode': 'private', 'rank': 30})
    dense = StackedLinear(1, 400, 300)
    ratio = private.weight(0).std() / dense.weight(0).std()
    assert 0.9 < ratio < 1.1


@pytest.mark.parametrize('mode', MODES)
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    layers = stack(mode)
    x = torch.randn(2, 10)
    with torch.no_grad():
        for b in layers.private_B.values():
            b.normal_()
    sum(layers(x, i).sum() for i in range(3)).backward()
    assert all(p.grad.any() for p in layers.parameters())


def test_a_tensor_is_stored_once() -> None:
    layers = StackedLinear(
        8, 256, 256, {'mode': 'lors', 'rank': 1}, bias=False
    )
    file = io.BytesIO()
    torch.save(layers.state_dict(), file)
    payload = 4 * sum(p.numel() for p in layers.parameters())
    assert payload < len(file.getvalue()) < 1.1 * payload
    clone = copy.deepcopy(layers)
    assert len(list(clone.parameters())) == len(list(layers.parameters()))


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize(
    ('other', 'holds'),
    [
        (StackedLinear(4, 10, 8, {'mode': 'lors', 'rank': 1}), '4 layers'),
        (stack('lors', rank=[1, 2, 4]), "2: '8'"),
        (stack('dense'), "mode 'dense'"),
        (stack('shared'), "mode 'shared'"),
        (stack('private'), "mode 'private'"),
    ],
)
def test_loading_another_layout_is_an_error(
    other: StackedLinear, holds: str, strict: bool
) -> None:
    layers = StackedLinear(
        3, 10, 8, {'mode': 'lors', **CONFIG}, key='decoder.stacks.ffn'
    )
    with pytest.raises(ValueError, match=r'decoder.stacks.ffn') as error:
        layers.load_state_dict(other.state_dict(), strict=strict)
    assert holds in str(error.value)
    assert "mode 'lors', 3 layers, ranks {0: '1', 1: '2', 2: '6'}" in str(
        error.value
    )


def test_loading_other_parts_leaves_a_stack_alone() -> None:
    layers = stack('lors')
    before = copy.deepcopy(layers.state_dict())
    layers.load_state_dict({'backbone.weight': torch.zeros(1)}, strict=False)
    assert all(
        torch.equal(v, before[k]) for k, v in layers.state_dict().items()
    )


@pytest.mark.parametrize('mode', ['private', 'lors'])
@pytest.mark.parametrize('num_rows', [1, 3, 4, 40])
def test_unmerged_where_that_is_cheaper(
    mode: str, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = StackedLinear(1, 8, 6, {'mode': mode, 'rank': 2}).double()
    torch.nn.init.normal_(layers.private_B['0'])
    x = torch.randn(num_rows, 8, dtype=torch.float64)
    chosen = layers.use_unmerged(num_rows, 0)
    outputs, counts = {}, {}
    for unmerged in (False, True):
        with (
            monkeypatch.context() as patch,
            FlopCounterMode(display=False) as counter,
        ):
            patch.setattr(
                StackedLinear, 'use_unmerged', lambda *_, u=unmerged: u
            )
            outputs[unmerged] = layers(x, 0)
        counts[unmerged] = counter.get_total_flops()
    torch.testing.assert_close(outputs[True], outputs[False])
    assert counts[chosen] == min(counts.values()), counts
