# SPDX-License-Identifier: Apache-2.0
"""The error of weights by what they do to recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lors_det.lors import AdaptiveStack, StackedLinear
from lors_det.lors.inputs import OutputError, record_inputs


def gram(x: Tensor) -> Tensor:
    return x.mT @ x


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
