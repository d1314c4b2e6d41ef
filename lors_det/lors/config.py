# SPDX-License-Identifier: Apache-2.0
"""The settings of a stack: four modes, ranks, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

MODES = {
    'dense': 'N unrelated matrices',
    'shared': 'one matrix, used N times',
    'private': 'N low-rank matrices, nothing shared',
    'lors': 'one matrix plus N low-rank residuals',
}


def rising(num_layers: int) -> list[int]:
    """Return the paper's schedule of K: 1, 2 and 3 in equal thirds.

    Layer i of N, from 0, has ``K_i = 1 + floor(3 i / N)``: (1, 1, 2, 2, 3, 3)
    for six layers, (1, 2, 3) for three, (1,) for one.

    Source: LORS (arXiv:2403.04303), its default for AdaMixer's six stages;
    other depths are this project's continuation.

    Args:
        num_layers: Depth N.
    """
    return [1 + 3 * i // num_layers for i in range(num_layers)]


def falling(num_layers: int) -> list[int]:
    """Return the schedule `rising` backwards."""
    return rising(num_layers)[::-1]


SCHEDULES = {'rising': rising, 'falling': falling}


@dataclass(frozen=True)
class StackConfig:
    """Settings of the weights of one stack of layers.

    Source: LORS (arXiv:2403.04303); the modes other than ``lors`` are what it
    is compared with there.

    Args:
        mode: One of ``dense``, ``shared``, ``private``, ``lors``.
        rank: Rank r of one low-rank term; one value, or one per layer. Read
            in the modes ``private`` and ``lors`` only, checked in all. 0
            leaves the private part out.
        num_param_groups: Number K of low-rank terms that are summed; one
            value, one per layer, or the name of a schedule (`SCHEDULES`).
            Read where ``rank`` is read.
    """

    mode: str = 'dense'
    rank: int | Sequence[int] = 0
    num_param_groups: int | Sequence[int] | str = 1

    @classmethod
    def parse(cls, config: object, key: str) -> StackConfig:
        """Build from what a config file holds.

        Args:
            config: A ``StackConfig``, a mapping of its fields, or None for
                dense weights.
            key: Name of the setting, for the error message.

        Raises:
            TypeError: If ``config`` is none of these, or has another field.
            ValueError: If the mode is unknown.
        """
        known = [field.name for field in fields(cls)]
        if config is None:
            config = cls()
        elif isinstance(config, dict) and set(config) <= set(known):
            config = cls(**config)
        if not isinstance(config, cls):
            raise TypeError(
                f'{key}={config!r}: expected a dict with keys out of {known}'
            )
        if config.mode not in list(MODES):  # a mode may be unhashable
            raise ValueError(
                f'{key}.mode={config.mode!r}: expected one of '
                + ', '.join(f'{m!r} ({text})' for m, text in MODES.items())
            )
        return config

    @property
    def has_shared(self) -> bool:
        """Tell whether one matrix serves all layers."""
        return self.mode in ('shared', 'lors')

    @property
    def has_private(self) -> bool:
        """Tell whether each layer has low-rank terms of its own."""
        return self.mode in ('private', 'lors')

    def private_sizes(
        self, num_layers: int, max_rank: int, key: str
    ) -> list[tuple[int, int]]:
        """Number of terms and rank of every layer.

        Args:
            num_layers: Depth N of the stack.
            max_rank: Smaller side of the matrix: a term of a higher rank
                would only repeat itself.
            key: Name of the setting, for the error message.

        Returns:
            N pairs (K, r); (0, 0) for a layer without a private part.

        Raises:
            TypeError: If a value is not an integer or a list of integers.
            ValueError: If a list has not N entries, or a value is out of
                range.
        """
        lowest = 1 if self.mode == 'private' else 0
        rank_key, k_key = f'{key}.rank', f'{key}.num_param_groups'
        ranks = _per_layer(self.rank, num_layers, rank_key, lowest, max_rank)
        k = self.num_param_groups
        if isinstance(k, str):
            if k not in SCHEDULES:
                raise ValueError(
                    f'{k_key}={k!r}: expected an integer, a list, or one of '
                    f'{sorted(SCHEDULES)}'
                )
            k = SCHEDULES[k](num_layers)
        numbers = _per_layer(k, num_layers, k_key, 1)
        return [
            (k, r) if r and self.has_private else (0, 0)
            for k, r in zip(numbers, ranks, strict=True)
        ]


def check_at_least(lowest: int, **values: Any) -> None:
    """Refuse sizes that are not integers, or too small.

    Args:
        lowest: Smallest value allowed.
        values: The sizes by the name of their setting.

    Raises:
        TypeError: If a value is not an integer.
        ValueError: If a value is below ``lowest``.
    """
    for key, value in values.items():
        expected = f'{key}={value!r}: expected an integer of at least {lowest}'
        _check_integer(value, expected, lowest)


def check_list(lowest: int, key: str, values: object) -> None:
    """Refuse what is not a list of integers, or holds one that is too small.

    Args:
        lowest: Smallest entry allowed.
        key: Name of the setting.
        values: Value of the setting.

    Raises:
        TypeError: If it is no list, or an entry is not an integer.
        ValueError: If it is empty, or an entry is below ``lowest``.
    """
    expected = (
        f'{key}={values!r}: expected a list of integers of at least {lowest}'
    )
    if not isinstance(values, (list, tuple)):
        raise TypeError(expected)
    if not values:
        raise ValueError(expected)
    check_at_least(lowest, **{f'{key}[{i}]': v for i, v in enumerate(values)})


def _per_layer(
    value: Any, num_layers: int, key: str, lowest: int, highest: float = inf
) -> list[int]:
    """Return the value of every layer: an integer is that of all layers."""
    is_list = isinstance(value, (list, tuple))
    entries = list(value) if is_list else [value] * num_layers
    if len(entries) != num_layers:
        raise ValueError(
            f'{key}={value!r} has {len(entries)} entries: expected one value, '
            f'or one for each of the {num_layers} layers'
        )
    limits = f'of at least {lowest}'
    if highest < inf:
        limits = f'from {lowest} to {highest}'
    expected = (
        f'{key}={value!r}: expected values {limits}, one integer or a list '
        'of one per layer'
    )
    for entry in entries:
        _check_integer(entry, expected, lowest, highest)
    return entries


def _check_integer(
    value: object, expected: str, lowest: int, highest: float = inf
) -> None:
    """Raise an error with the message ``expected`` for any other value."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(expected)
    if not lowest <= value <= highest:
        raise ValueError(expected)
