# SPDX-License-Identifier: Apache-2.0
"""Sigmoid focal loss against its formula."""

import math
from functools import partial

import pytest
import torch
from helpers.ops import check_half, check_values
from mmcv.ops import sigmoid_focal_loss
from torch import Tensor

#: Of 4 classes; 4 is background.
TARGET = torch.tensor([0, 3, 4, 1, 4, 2])


def formula(logits: Tensor, weight: Tensor | None, gamma: float) -> Tensor:
    """Return the losses ``(N, C)`` at an alpha of 0.3."""
    losses = torch.zeros_like(logits)
    for row, label in enumerate(TARGET.tolist()):
        for column in range(logits.shape[1]):
            p = 1 / (1 + math.exp(-logits[row, column].item()))
            if label == column:
                loss = -0.3 * (1 - p) ** gamma * math.log(p)
            else:
                loss = -0.7 * p**gamma * math.log(1 - p)
            # Background has no weight of its own.
            if weight is not None and label < 4:
                loss *= weight[label].item()
            losses[row, column] = loss
    return losses


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_values_and_gradient(gamma: float, weighted: bool) -> None:
    logits = 3 * torch.randn(6, 4)
    weight = torch.rand(4) + 0.5 if weighted else None
    expected = formula(logits, weight, gamma)

    def loss(x: Tensor, reduction: str = 'none') -> Tensor:
        weights = None if weight is None else weight.to(x.dtype)
        return sigmoid_focal_loss(x, TARGET, gamma, 0.3, weights, reduction)

    check_values(loss, [logits], expected)
    for reduction in ('sum', 'mean'):
        total = expected.sum() / (6 if reduction == 'mean' else 1)
        found = loss(logits, reduction)
        torch.testing.assert_close(found, total, rtol=0, atol=1e-11)
        leaf = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            partial(loss, reduction=reduction), leaf
        )


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_extreme_logits(gamma: float) -> None:
    """Losses and gradients stay finite, and the losses exact, in float32."""
    values = [[-200.0], [-30], [30], [200]]
    logits = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    target = torch.tensor([0, 0, 1, 1])
    losses = sigmoid_focal_loss(logits, target, gamma, 0.25, None, 'none')
    # log(sigmoid(-x)) = -x to float32's precision from x = 30 on.
    slope = torch.tensor([[-0.25], [-0.25], [0.75], [0.75]]).float()
    expected = slope * logits.detach()
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.sum().backward()
    torch.testing.assert_close(logits.grad, slope, rtol=1e-6, atol=0)


def test_half_precision() -> None:
    check_half(
        lambda x: sigmoid_focal_loss(x, TARGET, 2.0, 0.3, None, 'none'),
        [torch.randn(6, 4)],
    )
