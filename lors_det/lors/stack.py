# SPDX-License-Identifier: Apache-2.0
"""What static and adaptive stacks have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from lors_det.lors.config import StackConfig, check_at_least

Shapes = Mapping[str, tuple[int, ...]]


class Stack(nn.Module):
    """N weights of one shape, used by N layers of the same architecture.

    A checkpoint that was written for another depth, mode or rank is refused
    when it is loaded, also where the caller loads with ``strict=False``:
    skipping the stack would leave random weights without a word.

    Args:
        num_layers: Depth N.
        config: Where the weights come from.
        key: Name of the stack's setting, for error messages.

    Raises:
        TypeError: If ``num_layers`` is not an integer.
        ValueError: If ``num_layers`` is below 1 or the mode is unknown.
    """

    #: What the parameters are for, by the first part of their name.
    parts: ClassVar[dict[str, str]]

    def __init__(self, num_layers: int, config: StackConfig, key: str) -> None:
        super().__init__()
        check_at_least(1, num_layers=num_layers)
        config.check_mode(key)
        self.num_layers = num_layers
        self.config = config
        self.key = key

    def part_of(self, name: str) -> str:
        """Say what a parameter is for: shared, private, dense or other.

        Args:
            name: Name of one of this stack's parameters.
        """
        return self.parts[name.split('.')[0]]

    def private_ranks(self, shapes: Shapes) -> dict[int, str]:
        """Private rank, as 'K x r' or their product, by layer.

        Args:
            shapes: Shape of every tensor of a state dict of such a stack.
        """
        raise NotImplementedError

    def _layout(self, shapes: Shapes) -> str:
        ranks = self.private_ranks(shapes)
        parts = {self.part_of(name) for name in shapes}
        if 'dense' in parts:
            text = "mode 'dense'"
        elif not ranks:
            text = "mode 'shared'"
        else:
            text = "mode 'lors'" if 'shared' in parts else "mode 'private'"
        indices = [re.match(r'\w+\.(\d+)', name) for name in shapes]
        depth = max((int(m[1]) + 1 for m in indices if m), default=0)
        if depth:
            text += f', {depth} layers'
        return f'{text}, ranks {ranks}' if ranks else text

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        found = {
            name.removeprefix(prefix): tuple(value.shape)
            for name, value in state_dict.items()
            if name.startswith(prefix)
            and name.removeprefix(prefix).split('.')[0] in self.parts
        }
        expected = {
            name: tuple(value.shape) for name, value in self.named_parameters()
        }
        if found and self._layout(found) != self._layout(expected):
            raise ValueError(
                f'{self.key}: the checkpoint ({prefix}*) holds '
                f'{self._layout(found)}; the model was built with '
                f'{self._layout(expected)}: build it with the depth, mode '
                'and rank of the checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
