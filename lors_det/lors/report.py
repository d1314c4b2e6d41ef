# SPDX-License-Identifier: Apache-2.0
"""Parameters of a model, stack by stack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lors_det.lors.stacks import AdaptiveStack, Stack, StackedLinear


@dataclass(frozen=True)
class StackReport:
    """Parameters of one stack.

    Args:
        name: Name of the stack in the model.
        mode: Its mode.
        num_layers: Depth N.
        shape: Sizes of one of its N weights.
        shared: In the part that all layers use.
        private: In low-rank factors and their generators.
        dense: In matrices of the mode ``dense``.
        bias: In biases, one for each layer.
        equivalent: What the N weights have in the mode ``dense``, without
            biases of a `StackedLinear`.
    """

    name: str
    mode: str
    num_layers: int
    shape: tuple[int, ...]
    shared: int
    private: int
    dense: int
    bias: int
    equivalent: int


@dataclass(frozen=True)
class ModelReport:
    """Parameters of a model.

    Args:
        stacks: Its stacks.
        untouched: In everything that is no stack.
    """

    stacks: tuple[StackReport, ...]
    untouched: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.untouched + sum(
            s.shared + s.private + s.dense + s.bias for s in self.stacks
        )

    @property
    def dense_total(self) -> int:
        """All parameters of the same model with dense stacks."""
        return self.untouched + sum(s.equivalent + s.bias for s in self.stacks)

    @property
    def reduction(self) -> float:
        """Part of the dense parameters that is saved, from 0 to 1."""
        return 1 - self.total / self.dense_total if self.dense_total else 0.0

    def __str__(self) -> str:
        """A table in markdown."""
        head = (
            'stack', 'mode', 'weights', 'dense twin', 'shared', 'private',
            'dense', 'bias',
        )  # fmt: skip
        rows = [head, ('---',) * len(head)]
        for s in self.stacks:
            shape = ' x '.join(map(str, s.shape))
            numbers = (s.equivalent, s.shared, s.private, s.dense, s.bias)
            depth = f'{s.num_layers} of {shape}'
            rows.append((s.name, s.mode, depth, *(f'{n:,}' for n in numbers)))
        table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
        return (
            f'{table}\n\nuntouched {self.untouched:,}; in all '
            f'{self.total:,}, {100 * self.reduction:.1f} % fewer than the '
            f'dense {self.dense_total:,}'
        )


def report(model: nn.Module) -> ModelReport:
    """Count parameters: shared, private and dense by stack, and untouched.

    Args:
        model: Any module; stacks are found at any depth.

    Returns:
        The counts, whose sum is the number of all parameters; ``str`` of it
        is a table.
    """
    total = sum(p.numel() for p in model.parameters())
    stacks = tuple(
        _count(name, stack)
        for name, stack in model.named_modules()
        if isinstance(stack, Stack)
    )
    counted = sum(s.shared + s.private + s.dense + s.bias for s in stacks)
    return ModelReport(stacks, total - counted)


def _count(name: str, stack: Stack) -> StackReport:
    counts = dict.fromkeys(('shared', 'private', 'dense', 'other'), 0)
    for parameter_name, parameter in stack.named_parameters():
        counts[stack.part_of(parameter_name)] += parameter.numel()
    shape: tuple[int, ...] = ()
    weight = counts['dense'] // stack.num_layers
    if isinstance(stack, StackedLinear):
        shape = (stack.out_features, stack.in_features)
        weight = stack.out_features * stack.in_features
    elif isinstance(stack, AdaptiveStack):
        shape = (stack.num_groups, stack.rows, stack.cols)
        weight = stack.num_groups * stack.rows * stack.cols
        weight *= 1 + _query_dim(stack)
    return StackReport(
        name,
        stack.config.mode,
        stack.num_layers,
        shape,
        counts['shared'],
        counts['private'],
        counts['dense'],
        counts['other'],
        stack.num_layers * weight,
    )


def _query_dim(stack: AdaptiveStack) -> int:
    linear = next(m for m in stack.modules() if isinstance(m, nn.Linear))
    return linear.in_features
