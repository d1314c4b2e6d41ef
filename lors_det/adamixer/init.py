# SPDX-License-Identifier: Apache-2.0
"""Initial values that several steps of a stage share."""

from __future__ import annotations

from torch import nn

from lors_det.lors import StackedLinear


def xavier_reset(stack: StackedLinear) -> None:
    """Draw a stack's values with Xavier's law for its whole matrices.

    The AdaMixer release does so with the weights of all linear layers of a
    stage, and leaves their biases as ``nn.Linear`` draws them.
    """
    stack.reset_parameters()
    for weight in [*stack.dense, stack.shared]:
        if weight is not None:
            nn.init.xavier_uniform_(weight)


def zero_weights(stack: StackedLinear) -> None:
    """Make every layer of a stack start as the zero map plus its bias.

    The factors A keep their values, so that the private parts can learn.
    """
    for weight in [*stack.dense, stack.shared, *stack.private_B.values()]:
        if weight is not None:
            nn.init.zeros_(weight)
