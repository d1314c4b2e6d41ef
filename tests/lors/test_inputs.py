# SPDX-License-Identifier: Apache-2.0
"""The error of weights by what they do to recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lors_det.lors import AdaptiveStack, StackedLinear
from lors_det.lors.inputs import DAMPING, OutputError, record_inputs

MANY, FEW = 40, 4  # inputs of a layer with six


def gram(x: Tensor) -> Tensor:
    return x.mT @ x


def draw(rows: int) -> tuple[OutputError, Tensor, Tensor]:
    """Errors by inputs, the inputs (N, n, in) and the weights."""
    torch.manual_seed(0)
    inputs = torch.randn(3, rows, 6).double() * torch.arange(1.0, 7.0)
    weights = torch.randn(3, 5, 6).double()
    return OutputError(list(inputs), weights), inputs, weights


def moments(inputs: Tensor, weights: Tensor) -> Tensor:
    """The second moments that count, (N, in, in)."""
    scale = (weights @ inputs.mT).flatten(1).norm(dim=1) ** -2
    moments = gram(inputs) * scale[:, None, None]
    mean = moments.diagonal(dim1=1, dim2=2).mean(1)
    return moments + DAMPING * mean[:, None, None] * torch.eye(6)


def test_recorded_inputs_are_those_of_the_layers() -> None:
    static, adaptive = StackedLinear(2, 6, 5), AdaptiveStack(2, 6, 1, 3, 4)
    x = torch.randn(2, 2, 5, 6)  # of calls and layers: see below
    with record_inputs({'a': static, 'b': adaptive}, rows=100) as found:
        for call in x:
            static(call[:1], 0)
            static(call, layer=1)
            adaptive(call, 0)
            adaptive(call[1], layer=1)
    given = x[:, :1].flatten(0, -2), x.flatten(0, -2), x[:, 1].flatten(0, -2)
    ones = [
        torch.cat([rows, torch.ones(len(rows), 1)], 1) for rows in given[1:]
    ]
    assert list(found) == ['a', 'b']
    for name, expected in (('a', given[:2]), ('b', ones)):
        for rows, each in zip(found[name], expected, strict=True):
            torch.testing.assert_close(gram(rows), gram(each))
    with record_inputs({'a': static}, rows=3) as found:
        static(x, 0)
        static(x[0], 1)
    assert [tuple(rows.shape) for rows in found['a']] == [(3, 6), (3, 6)]
    assert len(found['a']) == 2  # nothing is recorded any more
    assert not static._forward_pre_hooks


@pytest.mark.parametrize('rows', [MANY, FEW])
def test_whitened_errors_are_those_of_the_outputs(rows: int) -> None:
    norm, inputs, weights = draw(rows)
    expected = moments(inputs, weights)
    for i, error in enumerate(torch.randn(3, 5, 6).double()):
        whitened = norm.whiten(i, error)
        found = whitened.square().sum()
        torch.testing.assert_close(found, (error @ expected[i] * error).sum())
        torch.testing.assert_close(norm.unwhiten(i, whitened), error)
    # Relative, but for the damping.
    own = norm.whiten(0, weights[0]).square().sum().item()
    assert 1 < own < 1 + 3 * DAMPING


@pytest.mark.parametrize('rows', [MANY, FEW, 1])
def test_the_mean_is_the_nearest_weight(rows: int) -> None:
    norm, inputs, weights = draw(rows)
    m = moments(inputs, weights)
    expected = (weights @ m).sum(0) @ torch.linalg.inv(m.sum(0))
    whitened = [norm.whiten(i, weight) for i, weight in enumerate(weights)]
    found = norm.mean(torch.stack(whitened))
    torch.testing.assert_close(found, expected)


def test_inputs_and_weights_of_zeros() -> None:
    inputs = [torch.zeros(9, 3).double(), torch.ones(9, 3).double()]
    weights = torch.stack([torch.ones(2, 3), torch.zeros(2, 3)]).double()
    norm = OutputError(inputs, weights)
    whitened = [norm.whiten(i, weight) for i, weight in enumerate(weights)]
    assert norm.mean(torch.stack(whitened)).isfinite().all()


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        ([torch.ones(4, 6)], r'1 of \[\(4, 6\)\]: expected 2 of one shape'),
        ([torch.ones(4, 5)] * 2, r'expected 2 of one shape \(n, 6\)'),
        ([torch.ones(4, 6), torch.ones(3, 6)], 'expected 2 of one shape'),
        ([torch.ones(0, 6)] * 2, 'expected 2 of one shape'),
        ([torch.full((4, 6), torch.nan)] * 2, 'expected finite numbers'),
    ],
)
def test_inputs_that_do_not_fit(inputs: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OutputError(inputs, nn.Parameter(torch.ones(2, 5, 6)))
