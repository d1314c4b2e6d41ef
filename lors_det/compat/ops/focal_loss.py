# SPDX-License-Identifier: Apache-2.0
"""Sigmoid focal loss of every logit, with integer targets.

For the class of the target, the loss is ``-alpha (1 - p)**gamma log(p)``; for
every other class ``-(1 - alpha) p**gamma log(1 - p)``, ``p`` the sigmoid of
the logit. The logarithms are exact where the compiled op clamps ``p`` and
``1 - p`` from below. The arguments of the ops:

- ``input`` ``(N, C)``: logits;
- ``target`` ``(N,)`` int64: the class of each row; any other value, such as
  ``C``, is background;
- ``weight`` ``(C,)``: weight of the rows of each class, or empty for none.
  Background rows, for which it has no entry, have weight 1.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lors_det.compat.ops.compute import compute, compute_gradients


def sigmoid_focal_loss_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the losses to ``output``, ``(N, C)``."""
    loss = partial(_loss, target, weight, gamma, alpha)
    output.copy_(compute(loss, [input]))


def sigmoid_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Write the derivative of every loss in its logit to ``grad_input``."""
    loss = partial(_loss, target, weight, gamma, alpha)
    # Each loss depends on one logit, so ones select the derivatives.
    (grad,) = compute_gradients(loss, [input], torch.ones_like(input))
    grad_input.copy_(grad)


def _loss(
    target: Tensor, weight: Tensor, gamma: float, alpha: float, logits: Tensor
) -> Tensor:
    """Return the loss ``(N, C)`` of logits ``(N, C)``.

    torchvision's has no weights of classes, and gradients that are not a
    number where p or 1 - p underflows and gamma is below 1.
    """
    classes = torch.arange(logits.shape[1], device=target.device)
    positive = target[:, None] == classes
    log_p, log_not_p = logsigmoid(logits), logsigmoid(-logits)
    # Powers through logarithms: unlike that of pow, their derivative is
    # finite where p or 1 - p underflows.
    loss = torch.where(
        positive,
        -alpha * torch.exp(gamma * log_not_p) * log_p,
        -(1 - alpha) * torch.exp(gamma * log_p) * log_not_p,
    )
    if weight.numel():
        # Not a matrix product with one-hot rows, which autocast would lower.
        rows = torch.where(positive, weight.to(loss.dtype), 0).sum(dim=1)
        loss = loss * torch.where(positive.any(dim=1), rows, 1)[:, None]
    return loss
