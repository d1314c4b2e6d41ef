# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.factories import encoder
from torch import Tensor, nn

from lors_det.lors import (
    AdaptiveStack,
    FitReport,
    StackedLinear,
    factorise,
    fold,
    lorsify,
)

Fit = tuple[Any, FitReport]


def fit(dense: nn.Module, config: dict[str, Any], **settings: Any) -> Fit:
    """Factorise a copy of a dense stack; the new stack and its report."""
    model = nn.ModuleDict({'stack': copy.deepcopy(dense)})
    (report,) = factorise(model, {'stack': config}, **settings).values()
    return model['stack'], report


def static(weights: Tensor) -> StackedLinear:
    """A dense stack of given matrices, float64."""
    stack = StackedLinear(*weights.mT.shape).double()
    with torch.no_grad():
        for parameter, weight in zip(stack.dense, weights, strict=True):
            parameter.copy_(weight)
    return stack


def matrices(stack: StackedLinear) -> Tensor:
    return torch.stack([stack.weight(i) for i in range(stack.num_layers)])


def planted(num_layers: int = 6, noise: float = 0.0) -> Tensor:
    """A shared matrix and residuals of rank 2, float64."""
    torch.manual_seed(1)
    parts = [
        torch.randn(12, 2).double() @ torch.randn(2, 9).double()
        for _ in range(num_layers)
    ]
    weights = torch.randn(12, 9).double() + torch.stack(parts)
    return weights + noise * torch.randn_like(weights)


@pytest.mark.parametrize('shape', [(3, 12, 9), (3, 9, 12), (1, 7, 7)])
@pytest.mark.parametrize('mode', ['private', 'lors'])
@pytest.mark.parametrize('rows', [None, 3, 40])
def test_full_rank_is_exact(
    shape: tuple[int, ...], mode: str, rows: int | None
) -> None:
    """With few and many inputs, and without."""
    num_layers, _, size = shape
    dense = static(torch.randn(shape).double())
    inputs = rows and {'stack': given(rows, size, num_layers)}
    config = {'mode': mode, 'rank': min(shape[1:])}
    stack, report = fit(dense, config, inputs=inputs)
    torch.testing.assert_close(matrices(stack), matrices(dense))
    assert max(report.errors) < 1e-12
    x = torch.randn(4, shape[2]).double()
    torch.testing.assert_close(stack(x, 0), dense(x, 0))  # biases too


def test_alternation_is_monotone_and_beats_its_start() -> None:
    weights = planted(noise=0.1)
    config = {'mode': 'lors', 'rank': 2}
    _, report = fit(static(weights), config, max_iters=200, tol=1e-9)
    history = report.history
    assert all(b <= a for a, b in pairwise(history))
    assert history[-1] < 0.5 * history[0]
    start, report = fit(static(weights), config, max_iters=0)
    assert len(report.history) == 1
    torch.testing.assert_close(start.shared.data, weights.mean(0))
    # The start is the truncated singular value decomposition of the rest.
    u, s, v = torch.linalg.svd(weights[0] - weights.mean(0))
    best = u[:, :2] * s[:2] @ v[:2]
    torch.testing.assert_close(start.weight(0) - start.shared, best)


def test_planted_parts_are_found() -> None:
    config = {'mode': 'lors', 'rank': 2}
    _, report = fit(static(planted()), config, max_iters=3000, tol=0)
    assert max(report.errors) < 1e-3
    _, start = fit(static(planted()), config, max_iters=0)
    assert min(start.errors) > 0.1


def test_the_report_is_true() -> None:
    weights, ranks = planted(3, noise=0.3), [0, 2, 3]
    stack, report = fit(static(weights), {'mode': 'lors', 'rank': ranks})
    for i, w in enumerate(weights):
        error = float((w - stack.weight(i).data).norm() / w.norm())
        assert report.errors[i] == pytest.approx(error)
        assert report.curves[i][ranks[i]] == pytest.approx(error)
        assert list(report.curves[i]) == sorted(report.curves[i])[::-1]
    assert report.rank_for(0) == [9, 9, 9]
    assert report.rank_for(1e9) == [0, 0, 0]
    for i, rank in enumerate(report.rank_for(0.1)):
        assert report.curves[i][rank] <= 0.1 < report.curves[i][rank - 1]
    assert str(report).startswith('layer 0: rank 0, relative error ')


def test_modes_with_one_part_only() -> None:
    weights = planted(2)
    stack, _ = fit(static(weights), {'mode': 'shared'})
    torch.testing.assert_close(stack.weight(1).data, weights.mean(0))
    _, report = fit(static(weights), {'mode': 'private', 'rank': 3})
    singular = torch.linalg.svdvals(weights[0])
    error = singular[3:].norm() / singular.norm()
    assert report.errors[0] == pytest.approx(float(error))


def test_zeros_and_equal_layers() -> None:
    for value in (0.0, 1.0):
        weights = torch.full((2, 3, 3), value).double()
        _, report = fit(static(weights), {'mode': 'lors', 'rank': 1})
        assert max(report.errors) < 1e-12


def test_a_model() -> None:
    """Exact at full rank; nearer than `lorsify` below."""
    dense, x = encoder(), torch.randn(2, 5, 8)
    lors = copy.deepcopy(dense)
    config = {'mode': 'lors', 'rank': 8}
    reports = factorise(lors, {'layers': {'self_attn': config}})
    assert list(reports) == [
        'layers.*.self_attn.in_proj_weight',
        'layers.*.self_attn.out_proj.weight',
    ]
    assert max(max(r.errors) for r in reports.values()) < 1e-12
    torch.testing.assert_close(lors(x), dense(x), rtol=0, atol=1e-5)

    stacks = {'layers': {'linear1': {'mode': 'lors', 'rank': 3}}}
    fitted, start = copy.deepcopy(dense), copy.deepcopy(dense)
    report = factorise(fitted, stacks)['layers.*.linear1.weight']
    lorsify(start, stacks)
    error, error_of_start = (
        sum(
            (a.linear1.weight - b.linear1.weight).square().sum().item()
            for a, b in zip(other.layers, dense.layers, strict=True)
        )
        for other in (fitted, start)
    )
    assert error == pytest.approx(report.history[-1], rel=1e-4)
    assert error < error_of_start


def generators(rows: int = 6, cols: int = 4) -> AdaptiveStack:
    stack = AdaptiveStack(3, 10, 2, rows, cols)
    for p in stack.parameters():
        nn.init.normal_(p, std=0.3)
    return stack


@pytest.mark.parametrize(
    ('rows', 'cols', 'rank', 'k'),
    [(5, 5, 5, 1), (8, 4, 4, 2), (4, 11, 4, 3)],
)
@pytest.mark.parametrize('mode', ['private', 'lors'])
def test_generators_at_full_rank(
    rows: int, cols: int, rank: int, k: int, mode: str
) -> None:
    dense = generators(rows, cols)
    config = {'mode': mode, 'rank': rank, 'num_param_groups': k}
    stack, report = fit(dense, config)
    assert max(report.errors) < 1e-6
    query = torch.randn(2, 3, 10)
    for i in range(3):
        torch.testing.assert_close(
            stack(query, i), dense(query, i), rtol=0, atol=1e-5
        )


def test_generators_of_a_lower_rank() -> None:
    """No step raises the error, and the report says what the stack does."""
    dense = generators()
    config = {'mode': 'lors', 'rank': [0, 2, 2], 'num_param_groups': [1, 1, 2]}
    stack, report = fit(dense, config, max_iters=20)
    history = report.history
    assert all(b <= a for a, b in pairwise(history))
    assert history[-1] < history[0]
    assert report.ranks == ('0', '1 x 2', '2 x 2')
    # Queries with unit covariance: mean squared error = error of coefficients
    basis = torch.cat([torch.zeros(1, 10), torch.eye(10)])
    for i in range(3):
        found, given = (
            torch.cat([s(basis, i)[:1], s(basis, i)[1:] - s(basis, i)[:1]])
            for s in (stack, dense)
        )
        error = (found - given).norm() / given.norm()
        assert report.errors[i] == pytest.approx(float(error), rel=1e-4)
        assert report.curves[i][0] > report.errors[i] - 1e-9


def test_terms_of_generators_are_found() -> None:
    """One term per group and layer on top of a known shared generator."""
    config = {'mode': 'lors', 'rank': 2}
    lors = AdaptiveStack(4, 10, 2, 8, 6, config)
    for p in lors.parameters():
        nn.init.normal_(p, std=0.5)
    dense = fold(lors, generators=True)
    _, report = fit(dense, config, max_iters=200, tol=0)
    assert max(report.errors) < 1e-3
    assert report.rank_for(0.01) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ('key', 'config', 'message'),
    [
        ('lors', {'mode': 'lors', 'rank': 2}, "has the mode 'lors' already"),
        ('fc1', {'mode': 'dense'}, "mode='dense': the stack is that"),
        ('fc', {'mode': 'shared'}, "'fc' matches no stack; the nearest"),
        ('fc1', {'mode': 'lors', 'rank': 7}, 'rank=7: expected values from 0'),
    ],
)
def test_what_cannot_be_factorised(
    key: str, config: dict[str, Any], message: str
) -> None:
    lors = StackedLinear(2, 6, 6, {'mode': 'lors', 'rank': 2})
    model = nn.ModuleDict({'fc1': StackedLinear(2, 6, 6), 'lors': lors})
    with pytest.raises(ValueError, match=message):
        factorise(model, {key: config})


def given(rows: int, size: int, num_layers: int = 6) -> list[Tensor]:
    """Inputs of layers, (n, in) each, along few directions."""
    torch.manual_seed(2)
    scale = 0.5 ** torch.arange(size)
    draws = (torch.randn(rows, size) for _ in range(num_layers))
    return [
        (x * scale) @ torch.linalg.qr(torch.randn(size, size)).Q for x in draws
    ]


def output_error(new: Any, dense: Any, inputs: list[Tensor]) -> float:
    """Sum of the squared relative errors of the layers' outputs."""
    outputs = [
        [
            stack(x if isinstance(dense, StackedLinear) else x[:, :-1], i)
            for i, x in enumerate(inputs)
        ]
        for stack in (new, dense)
    ]
    return sum(
        float(((a - b).norm() / b.norm()).square())
        for a, b in zip(*outputs, strict=True)
    )


@pytest.mark.parametrize('mode', ['lors', 'private'])
@pytest.mark.parametrize('rows', [4, 50])
def test_inputs_make_the_outputs_better(mode: str, rows: int) -> None:
    weights = planted(noise=0.3)
    dense = static(weights)
    dense.bias.requires_grad_(False)
    for bias in dense.bias:
        bias.zero_()
    inputs = [x.double() for x in given(rows, 9)]
    config = {'mode': mode, 'rank': 2}
    plain, _ = fit(dense, config)
    weighted, report = fit(dense, config, inputs={'stack': inputs})
    found = output_error(weighted, dense, inputs)
    assert found < 0.5 * output_error(plain, dense, inputs)
    history = report.history
    assert all(b <= a for a, b in pairwise(history))
    # What it minimises is this error, and a little of the weights' own.
    assert found < history[-1]


def test_inputs_of_generators_are_queries() -> None:
    dense = generators()
    inputs = [
        torch.cat([x, torch.ones(len(x), 1)], 1) for x in given(60, 10, 3)
    ]
    config = {'mode': 'lors', 'rank': 2, 'num_param_groups': [1, 1, 2]}
    plain, _ = fit(dense, config)
    weighted, report = fit(dense, config, inputs={'stack': inputs})
    found = output_error(weighted, dense, inputs)
    assert found < 0.5 * output_error(plain, dense, inputs)
    assert all(b <= a for a, b in pairwise(report.history))


def test_inputs_of_unit_moment_change_nothing() -> None:
    """Where all layers have one norm: errors of outputs are relative."""
    weights = planted(noise=0.3)
    weights = weights / weights.flatten(1).norm(dim=1)[:, None, None]
    config = {'mode': 'lors', 'rank': [0, 1, 2, 2, 3, 3]}
    plain, expected = fit(static(weights), config)
    stack, report = fit(
        static(weights), config, inputs={'stack': [torch.eye(9)] * 6}
    )
    torch.testing.assert_close(matrices(stack), matrices(plain))
    assert report.errors == pytest.approx(expected.errors)


def test_a_shared_matrix_serves_layers_with_inputs_of_their_own() -> None:
    """Two layers that look at different directions need no residual."""
    weights = torch.randn(2, 5, 8).double()
    inputs = list(torch.eye(8).double().split(4))
    _, report = fit(static(weights), {'mode': 'shared'})
    assert min(report.errors) > 0.4
    _, report = fit(
        static(weights), {'mode': 'shared'}, inputs={'stack': inputs}
    )
    assert max(report.errors) < 0.2


def test_inputs_of_a_stack_that_is_not_there() -> None:
    inputs = {'fc': [torch.ones(2, 9)] * 6}
    with pytest.raises(ValueError, match=r"inputs has \['fc'\]: expected na"):
        fit(static(planted()), {'mode': 'shared'}, inputs=inputs)
