# SPDX-License-Identifier: Apache-2.0
"""Sigmoid focal loss against its formula."""

import math

import pytest
import torch
from mmcv.ops import sigmoid_focal_loss
from torch import Tensor


def formula(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float
) -> Tensor:
    """Return the losses ``(N, C)`` at an alpha of 0.3."""
    losses = torch.zeros_like(logits)
    for row, label in enumerate(target.tolist()):
        for column in range(logits.shape[1]):
            p = 1 / (1 + math.exp(-logits[row, column].item()))
            if label == column:
                loss = -0.3 * (1 - p) ** gamma * math.log(p)
            else:
                loss = -0.7 * p**gamma * math.log(1 - p)
            # Background, here 4, has no weight of its own.
            if weight is not None and label < 4:
                loss *= weight[label].item()
            losses[row, column] = loss
    return losses


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_values_and_gradient(
    gamma: float, weighted: bool, rng: torch.Generator
) -> None:
    """Every loss, float64 to 1e-12 and float32 to 1e-5, and the gradient."""
    logits = 3 * torch.randn(6, 4, generator=rng, dtype=torch.float64)
    target = torch.tensor([0, 3, 4, 1, 4, 2])
    weight = None
    if weighted:
        weight = torch.rand(4, generator=rng, dtype=torch.float64) + 0.5
    expected = formula(logits, target, weight, gamma)
    losses = sigmoid_focal_loss(logits, target, gamma, 0.3, weight, 'none')
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-12)
    single = sigmoid_focal_loss(
        logits.float(),
        target,
        gamma,
        0.3,
        weight.float() if weight is not None else None,
        'none',
    )
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
    for reduction, value in (
        ('sum', expected.sum()),
        ('mean', expected.sum() / 6),
    ):

        def reduced(x: Tensor, reduction: str = reduction) -> Tensor:
            loss: Tensor = sigmoid_focal_loss(
                x, target, gamma, 0.3, weight, reduction
            )
            return loss

        torch.testing.assert_close(reduced(logits), value, rtol=0, atol=1e-11)
        leaf = logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(reduced, leaf)


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
def test_extreme_logits(gamma: float) -> None:
    """Losses and gradients stay finite, and the losses exact, in float32."""
    logits = torch.tensor([[-200.0], [-30], [30], [200]], requires_grad=True)
    target = torch.tensor([0, 0, 1, 1])
    losses = sigmoid_focal_loss(logits, target, gamma, 0.25, None, 'none')
    # log(sigmoid(-x)) = -x to float32's precision from x = 30 on.
    expected = torch.tensor(
        [[0.25 * 200], [0.25 * 30], [0.75 * 30], [0.75 * 200]]
    )
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=0)
    losses.sum().backward()
    slope = torch.tensor([[-0.25], [-0.25], [0.75], [0.75]])
    torch.testing.assert_close(logits.grad, slope, rtol=1e-6, atol=0)


def test_half_precision(rng: torch.Generator) -> None:
    """Half precision is computed in float32 and rounded once."""
    logits = torch.randn(6, 4, generator=rng).half().requires_grad_()
    target = torch.tensor([0, 3, 4, 1, 4, 2])
    losses = sigmoid_focal_loss(logits, target, 2.0, 0.3, None, 'none')
    exact = sigmoid_focal_loss(logits.float(), target, 2.0, 0.3, None, 'none')
    assert torch.equal(losses, exact.half())
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.float16
