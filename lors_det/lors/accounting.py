# SPDX-License-Identifier: Apache-2.0
"""Who holds how many parameters: shared, private, dense, or neither."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lors_det.lors.stacks import Stack


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters of a module.

    Args:
        shared: In matrices that all layers of a stack use.
        private: In low-rank factors and their generators.
        dense: In matrices of stacks in the mode ``dense``.
        other: Everything else: biases of stacks, norms, plain layers.
    """

    shared: int
    private: int
    dense: int
    other: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.shared + self.private + self.dense + self.other


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count parameters by their part in stacks; each tensor once.

    Args:
        module: Any module; stacks are found at any depth.

    Returns:
        The counts, whose sum is the number of all parameters.
    """
    total = sum(p.numel() for p in module.parameters())
    counts = dict.fromkeys(('shared', 'private', 'dense'), 0)
    for stack in module.modules():
        if isinstance(stack, Stack):
            for name, parameter in stack.named_parameters():
                part = stack.part_of(name)
                if part in counts:
                    counts[part] += parameter.numel()
    return ParameterCount(**counts, other=total - sum(counts.values()))
