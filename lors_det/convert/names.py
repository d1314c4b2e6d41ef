# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of a checkpoint's tensors, and renaming by a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Pair = tuple[str, str]


class Shapes(dict[str, tuple[int, ...]]):
    """The shape of every tensor of a checkpoint, by name.

    Args:
        state: The tensors.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__((k, tuple(v.shape)) for k, v in state.items())

    def count(self, pattern: str) -> int:
        """Count the names of a numbered series.

        Args:
            pattern: A name with ``{}`` in place of the number, from 0.
        """
        names = map(pattern.format, itertools.count())
        return sum(1 for _ in itertools.takewhile(self.__contains__, names))


class Names:
    """Names of tensors in a release and here; those not listed are equal.

    Args:
        pairs: The official name and ours, with ``{}`` for a number.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)

    def official(self, ours: str) -> str:
        """Return the official name of a tensor.

        Args:
            ours: Our name.
        """
        return _translate(ours, [(b, a) for a, b in self.pairs])

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of a release under our names.

        Args:
            state: Tensors by their official names.
        """
        return {_translate(name, self.pairs): x for name, x in state.items()}

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors under the names of a release.

        Args:
            state: Tensors by our names.
        """
        return {self.official(name): x for name, x in state.items()}


@dataclass(frozen=True)
class RecognisedModel:
    """A model of a release, recognised by the shapes of its tensors.

    Args:
        summary: The release and the sizes of the model in one line.
        base_config: The config that ``settings`` change.
        settings: The config's ``model``.
        names: The names of its tensors.
        state: State dict of the model built from ``settings``, for its names
            and shapes.
        notes: What the user should know.
    """

    summary: str
    base_config: str
    settings: dict[str, Any]
    names: Names
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_table(table: str, official: str = '', ours: str = '') -> list[Pair]:
    """Read names from the lines of a table: the official name, our name.

    ``(a|b)`` in both names makes two pairs, one for a and one for b.

    Args:
        table: The lines.
        official: What all official names begin with.
        ours: What all our names begin with.
    """
    pairs = []
    for line in table.strip().split('\n'):
        for choice in (r'\1', r'\2') if '|' in line else ('',):
            names = re.sub(r'\((\w+)\|(\w+)\)', choice, line)
            theirs, mine = names.split()
            pairs.append((official + theirs, ours + mine))
    return pairs


def _translate(name: str, pairs: Iterable[Pair]) -> str:
    """Return the second name of the pair that has this as the first."""
    for source, target in pairs:
        pattern = re.escape(source).replace(r'\{\}', r'(\d+)')
        if match := re.fullmatch(pattern, name):
            return target.format(*match.groups())
    return name
