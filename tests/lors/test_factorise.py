# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lors_det.lors import (
    AdaptiveStack,
    StackedLinear,
    factorise,
    factorise_generators,
    factorise_matrices,
    factorise_stack,
    lorsify,
)


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
def test_full_rank_is_exact(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape)
    fit = factorise_matrices(weights, min(shape[1:]))
    for w, b, a in zip(weights, fit.left, fit.right, strict=True):
        torch.testing.assert_close((fit.shared + b @ a).float(), w)
    assert max(fit.report.errors) < 1e-12


def test_alternation_is_monotone_and_beats_its_start() -> None:
    weights = planted(noise=0.1)
    fit = factorise_matrices(weights, 2, max_iters=200, tol=1e-9)
    history = fit.report.history
    assert all(b <= a for a, b in pairwise(history))
    assert history[-1] < 0.5 * history[0]
    start = factorise_matrices(weights, 2, max_iters=0)
    assert len(start.report.history) == 1
    torch.testing.assert_close(start.shared, weights.mean(0))
    # The start is the truncated singular value decomposition of the rest.
    u, s, v = torch.linalg.svd(weights[0] - weights.mean(0))
    best = u[:, :2] * s[:2] @ v[:2]
    torch.testing.assert_close(start.left[0] @ start.right[0], best)


def test_planted_parts_are_found() -> None:
    fit = factorise_matrices(planted(), 2, max_iters=3000, tol=0)
    assert max(fit.report.errors) < 1e-3
    start = factorise_matrices(planted(), 2, max_iters=0)
    assert min(start.report.errors) > 0.1


def test_the_report_is_true() -> None:
    weights = planted(3, noise=0.3)
    fit = factorise_matrices(weights, [0, 2, 3])
    report = fit.report
    for i, w in enumerate(weights):
        rest = w - fit.shared - fit.left[i] @ fit.right[i]
        assert report.errors[i] == pytest.approx(float(rest.norm() / w.norm()))
        assert report.curves[i][[0, 2, 3][i]] == pytest.approx(
            report.errors[i]
        )
        assert list(report.curves[i]) == sorted(report.curves[i])[::-1]
    assert report.rank_for(0) == [9, 9, 9]
    assert report.rank_for(1e9) == [0, 0, 0]
    for i, rank in enumerate(report.rank_for(0.1)):
        assert report.curves[i][rank] <= 0.1 < report.curves[i][rank - 1]
    assert str(report).startswith('layer 0: rank 0, relative error ')


def test_without_shared_part_one_step_is_the_optimum() -> None:
    weights = planted(2)
    fit = factorise_matrices(weights, 3, with_shared=False)
    assert fit.shared is None
    singular = torch.linalg.svdvals(weights[0])
    error = singular[3:].norm() / singular.norm()
    assert fit.report.errors[0] == pytest.approx(float(error))


def test_wrong_matrices_and_ranks() -> None:
    with pytest.raises(ValueError, match=r'\(2, 3\), \(3, 2\).*one shape'):
        factorise_matrices([torch.zeros(2, 3), torch.zeros(3, 2)], 1)
    with pytest.raises(ValueError, match='rank=4: expected values from 0 to'):
        factorise_matrices(torch.zeros(2, 3, 5), 4)
    with pytest.raises(TypeError, match='expected an integer'):
        factorise_matrices(torch.zeros(2, 3, 5), 1.0)


def test_zeros_and_equal_layers() -> None:
    fit = factorise_matrices(torch.zeros(2, 3, 3), 1)
    assert fit.report.errors == (0.0, 0.0)
    fit = factorise_matrices(torch.ones(2, 3, 3), 1)
    assert max(fit.report.errors) < 1e-12


def model() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4)
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.3)
    return encoder


def test_a_model_at_full_rank() -> None:
    dense = model()
    config = {'mode': 'lors', 'rank': 8}
    lors = copy.deepcopy(dense)
    reports = factorise(lors, {'layers': {'self_attn': config}})
    assert list(reports) == [
        'layers.*.self_attn.in_proj_weight',
        'layers.*.self_attn.out_proj.weight',
    ]
    assert max(max(r.errors) for r in reports.values()) < 1e-12
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(lors(x), dense(x), rtol=0, atol=1e-5)


def test_factorise_is_nearer_than_lorsify() -> None:
    dense = model()
    stacks = {'layers': {'linear1': {'mode': 'lors', 'rank': 3}}}

    def error(other: nn.Module) -> float:
        pairs = zip(other.layers, dense.layers, strict=True)
        return sum(
            (a.linear1.weight - b.linear1.weight).square().sum().item()
            for a, b in pairs
        )

    fitted = copy.deepcopy(dense)
    report = factorise(fitted, stacks)['layers.*.linear1.weight']
    assert error(fitted) == pytest.approx(report.history[-1], rel=1e-4)
    assert error(fitted) < error(lorsify(copy.deepcopy(dense), stacks))


@pytest.mark.parametrize('mode', ['shared', 'private', 'lors'])
def test_a_static_stack(mode: str) -> None:
    dense = StackedLinear(3, 6, 5)
    config = {'mode': mode, 'rank': 5, 'num_param_groups': [1, 2, 1]}
    stack, report = factorise_stack(dense, config)
    assert stack.config.mode == mode
    assert len(report.errors) == 3
    x = torch.randn(4, 6)
    for i in range(3):
        if mode == 'shared':
            mean = sum(dense.dense) / 3
            torch.testing.assert_close(stack.weight(i), mean)
        else:
            torch.testing.assert_close(stack(x, i), dense(x, i))


def generators(
    rows: int = 6, cols: int = 4, num_layers: int = 3
) -> AdaptiveStack:
    stack = AdaptiveStack(num_layers, 10, 2, rows, cols)
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
    stack, report = factorise_stack(dense, config)
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
    stack, report = factorise_stack(dense, config, max_iters=20)
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
    lors = AdaptiveStack(4, 10, 2, 8, 6, {'mode': 'lors', 'rank': 2})
    for p in lors.parameters():
        nn.init.normal_(p, std=0.5)
    query = torch.cat([torch.zeros(1, 10), torch.eye(10)])
    tensors = []
    for i in range(4):
        w = lors(query, i).detach()
        tensors.append(torch.cat([w[1:] - w[:1], w[:1]]).movedim(0, -1))
    fit = factorise_generators(
        torch.stack(tensors), [(1, 2)] * 4, max_iters=500, tol=0
    )
    assert max(fit.report.errors) < 1e-3
    curve = fit.report.rank_for(0.01)
    assert curve == [2, 2, 2, 2]


def test_what_cannot_be_factorised() -> None:
    config = {'mode': 'lors', 'rank': 2}
    dense = StackedLinear(2, 6, 6)
    stack, _ = factorise_stack(dense, config)
    with pytest.raises(ValueError, match="has the mode 'lors' already"):
        factorise_stack(stack, config)
    with pytest.raises(ValueError, match="mode='dense': the stack is that"):
        factorise_stack(dense, {'mode': 'dense'})
    with pytest.raises(ValueError, match="'fc' matches no stack; the nearest"):
        factorise(nn.ModuleDict({'fc1': dense}), {'fc': config})
    with pytest.raises(TypeError, match='a Linear is no stack: expected'):
        factorise_stack(nn.Linear(2, 2), config)
