# SPDX-License-Identifier: Apache-2.0
"""Count parameters: shared, private, dense and bias, stack by stack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from lors_det.lors.stacks import PARTS, AdaptiveStack, Stack, StackedLinear

HEADER = (
    'stack', 'mode', 'weights', 'dense counterpart', 'shared', 'private',
    'dense', 'bias',
)  # fmt: skip


@dataclass(frozen=True)
class StackCount:
    """Numbers of parameters of one stack.

    Args:
        name: Name of the stack in the model.
        mode: Its mode.
        num_layers: Depth N.
        shape: Sizes of one of its N weights.
        shared: In the part that all layers use.
        private: In low-rank factors and their generators.
        dense: In matrices of the mode ``dense``.
        bias: In biases, one for each layer.
        dense_weights: In the N weights of the dense counterpart.
    """

    name: str
    mode: str
    num_layers: int
    shape: tuple[int, ...]
    shared: int
    private: int
    dense: int
    bias: int
    dense_weights: int


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters of a model; ``str`` of it is a Markdown table.

    Its dense counterpart is the same model with all stacks in the mode
    ``dense``.

    Args:
        stacks: Counts of its stacks.
        shared: In matrices that all layers of a stack use.
        private: In low-rank factors and their generators.
        dense: In matrices of stacks in the mode ``dense``.
        other: Everything else: biases of stacks, norms, plain layers.
        dense_total: All parameters of the dense counterpart.
    """

    stacks: tuple[StackCount, ...]
    shared: int
    private: int
    dense: int
    other: int
    dense_total: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.shared + self.private + self.dense + self.other

    @property
    def reduction(self) -> float:
        """Saved share of the dense counterpart's parameters, up to 1."""
        return 1 - self.total / self.dense_total if self.dense_total else 0.0

    def __str__(self) -> str:
        """Format as a Markdown table."""
        rows = [HEADER, ('---',) * len(HEADER)]
        for s in self.stacks:
            numbers = (s.dense_weights, s.shared, s.private, s.dense, s.bias)
            weights = f'{s.num_layers} of {" x ".join(map(str, s.shape))}'
            counts = (f'{number:,}' for number in numbers)
            rows.append((s.name, s.mode, weights, *counts))
        untouched = self.other - sum(stack.bias for stack in self.stacks)
        table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
        return (
            f'{table}\n\nnot on stacks {untouched:,}; in all '
            f'{self.total:,}, {100 * self.reduction:.1f} % fewer than the '
            f'{self.dense_total:,} of the dense counterpart'
        )


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count parameters by what they are for; each tensor once.

    Args:
        module: Any module; stacks are found at any depth.

    Returns:
        The counts, whose sum is the number of all parameters.
    """
    stacks = tuple(
        _count_stack(name, stack)
        for name, stack in module.named_modules()
        if isinstance(stack, Stack)
    )
    shared, private, dense, weights = (
        sum(getattr(stack, part) for stack in stacks)
        for part in ('shared', 'private', 'dense', 'dense_weights')
    )
    total = sum(p.numel() for p in module.parameters())
    other = total - shared - private - dense
    return ParameterCount(
        stacks, shared, private, dense, other, other + weights
    )


def _count_stack(name: str, stack: Stack) -> StackCount:
    counts = dict.fromkeys(PARTS.values(), 0)
    for parameter_name, parameter in stack.named_parameters():
        counts[PARTS[parameter_name.split('.')[0]]] += parameter.numel()
    if isinstance(stack, AdaptiveStack):
        shape: tuple[int, ...] = (stack.num_groups, stack.rows, stack.cols)
        # A linear layer, with a bias, generates them.
        weight = math.prod(shape) * (stack.query_dim + 1)
    else:
        assert isinstance(stack, StackedLinear)
        shape = (stack.out_features, stack.in_features)
        weight = math.prod(shape)
    n = stack.num_layers
    return StackCount(
        name, stack.config.mode, n, shape, **counts, dense_weights=n * weight
    )
