# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of a checkpoint, with an error for names it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from lors_det.errors import UsageError


class Shapes(dict[str, tuple[int, ...]]):
    """Shape of every tensor of a checkpoint, by name.

    Args:
        state: The tensors.
        source: Name of the file, for error messages.
    """

    def __init__(self, state: Mapping[str, Tensor], source: str) -> None:
        super().__init__((k, tuple(v.shape)) for k, v in state.items())
        self.source = source

    def __missing__(self, name: str) -> tuple[int, ...]:
        """Refuse a checkpoint that lacks what its kind has."""
        raise UsageError(f'{self.source} has no tensor {name}')

    def count(self, pattern: str, step: int = 1) -> int:
        """How many of a numbered series of names there are.

        Args:
            pattern: A name with ``{}`` in place of the number, from 0.
            step: Difference of the numbers.
        """
        number = 0
        while pattern.format(step * number) in self:
            number += 1
        return number


@contextmanager
def inferring(source: str) -> Iterator[None]:
    """Explain sizes that cannot be computed from the shapes that are there.

    Args:
        source: Name of the file, for error messages.
    """
    try:
        yield
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f'{source}: a tensor has a shape that no detector has, its sizes '
            f'cannot be inferred ({error})'
        ) from None
