# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of a checkpoint's tensors, and renaming by a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class Shapes(dict[str, tuple[int, ...]]):
    """The shape of every tensor of a checkpoint, by name.

    Args:
        state: The tensors.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__((k, tuple(v.shape)) for k, v in state.items())

    def count(self, pattern: str, step: int = 1) -> int:
        """Count the names of a numbered series.

        Args:
            pattern: A name with ``{}`` in place of the number, from 0.
            step: Difference of the numbers.
        """
        numbers = itertools.count(step=step)
        names = (pattern.format(number) for number in numbers)
        return sum(1 for _ in itertools.takewhile(self.__contains__, names))


@dataclass(frozen=True)
class Rename:
    """One tensor of a release and the tensor or tensors that it is here.

    Args:
        official: Its name in a release.
        ours: Its names here.
        split: Turns the official tensor into ours.
        join: Turns ours into the official tensor.
    """

    official: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (x,)
    join: Callable[..., Tensor] = lambda x: x


@dataclass(frozen=True)
class OfficialModel:
    """A model of a release, recognised by the shapes of its tensors.

    Args:
        summary: The release and the sizes of the model in one line.
        base_config: The config that ``settings`` change.
        settings: The config's ``model``.
        renames: The names of its tensors.
        state: State dict of the model built from ``settings``, for its names
            and shapes.
        notes: What the user should know.
    """

    summary: str
    base_config: str
    settings: dict[str, Any]
    renames: list[Rename]
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_table(
    table: str, num_layers: int = 1, official: str = '', ours: str = ''
) -> Iterator[Rename]:
    """Read names from the lines of a table: the official name, our name.

    ``(a|b)`` in both names makes two pairs, one for a and one for b; ``{}``
    makes a pair for each layer.

    Args:
        table: The lines.
        num_layers: Number of layers.
        official: What all official names begin with.
        ours: What all our names begin with.

    Yields:
        A rename for each pair of names.
    """
    for line in filter(None, table.split('\n')):
        theirs, mine = line.split()
        pair = f'{official}{theirs} {ours}{mine}'
        for choice in (r'\1', r'\2') if '|' in pair else (r'\1',):
            names = re.sub(r'\((\w+)\|(\w+)\)', choice, pair)
            for layer in range(num_layers if '{}' in names else 1):
                theirs, mine = names.replace('{}', str(layer)).split()
                yield Rename(theirs, (mine,))


def to_ours(
    state: Mapping[str, Tensor], renames: Iterable[Rename]
) -> dict[str, Tensor]:
    """Rename and split official tensors; leave others out.

    Args:
        state: Official tensors by name.
        renames: The names.

    Returns:
        Our tensors by name.
    """
    ours: dict[str, Tensor] = {}
    for rename in renames:
        if rename.official in state:
            parts = rename.split(state[rename.official])
            # Copies, because parts that share memory cannot be saved.
            if len(parts) > 1:
                parts = tuple(part.clone() for part in parts)
            ours.update(zip(rename.ours, parts, strict=True))
    return ours


def to_official(
    state: Mapping[str, Tensor], renames: Iterable[Rename]
) -> dict[str, Tensor]:
    """Rename and join our tensors; leave others out.

    Args:
        state: Our tensors by name.
        renames: The names.

    Returns:
        Official tensors by name.
    """
    return {
        rename.official: rename.join(*(state[name] for name in rename.ours))
        for rename in renames
        if all(name in state for name in rename.ours)
    }
