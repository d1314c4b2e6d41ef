# SPDX-License-Identifier: Apache-2.0
"""Where the N matrices of a stack come from: four modes, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

MODES = {
    'dense': 'N unrelated matrices',
    'shared': 'one matrix, used N times',
    'private': 'N low-rank matrices, nothing shared',
    'lors': 'one matrix plus N low-rank residuals',
}


def rising(num_layers: int) -> list[int]:
    """The paper's schedule of K for any depth: 1, 2 and 3 in equal thirds.

    Layer i of N, from 0, has ``K_i = 1 + floor(3 i / N)``: (1, 1, 2, 2, 3, 3)
    for six layers, (1, 2, 3) for three, (1,) for one.

    Source: LORS (arXiv:2403.04303), its default for AdaMixer's six stages;
    other depths are this project's continuation.

    Args:
        num_layers: Depth N.

    Returns:
        N numbers from 1 to 3.
    """
    return [1 + 3 * i // num_layers for i in range(num_layers)]


def falling(num_layers: int) -> list[int]:
    """The schedule `rising` backwards.

    Args:
        num_layers: Depth N.

    Returns:
        N numbers from 3 to 1.
    """
    return rising(num_layers)[::-1]


SCHEDULES = {'rising': rising, 'falling': falling}


@dataclass(frozen=True)
class StackConfig:
    """How the weights of one stack of layers are made.

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
        """
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        known = [field.name for field in fields(cls)]
        if not isinstance(config, dict) or set(config) - set(known):
            raise TypeError(
                f'{key}={config!r}: expected a dict with keys out of {known}'
            )
        return cls(**config)

    @property
    def has_shared(self) -> bool:
        """Whether one matrix serves all layers."""
        return self.mode in ('shared', 'lors')

    @property
    def has_private(self) -> bool:
        """Whether each layer has low-rank terms of its own."""
        return self.mode in ('private', 'lors')

    def check_mode(self, key: str) -> None:
        """Refuse an unknown mode.

        Args:
            key: Name of the setting, for the error message.

        Raises:
            ValueError: If the mode is unknown.
        """
        if self.mode not in list(MODES):  # which may be unhashable
            raise ValueError(
                f'{key}.mode={self.mode!r}: expected one of '
                + ', '.join(f'{m!r} ({text})' for m, text in MODES.items())
            )

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
        self.check_mode(key)
        lowest = 1 if self.mode == 'private' else 0
        ranks = per_layer(
            self.rank, num_layers, f'{key}.rank', lowest, max_rank
        )
        groups = self.num_param_groups
        group_key = f'{key}.num_param_groups'
        if isinstance(groups, str):
            if groups not in SCHEDULES:
                raise ValueError(
                    f'{group_key}={groups!r}: expected an integer, a list, or '
                    f'one of {sorted(SCHEDULES)}'
                )
            groups = SCHEDULES[groups](num_layers)
        groups = per_layer(groups, num_layers, group_key, 1)
        if not self.has_private:  # checked all the same
            return [(0, 0)] * num_layers
        return [
            (k, r) if r else (0, 0) for k, r in zip(groups, ranks, strict=True)
        ]


def per_layer(
    value: int | Sequence[int],
    num_layers: int,
    key: str,
    lowest: int = 0,
    highest: int | None = None,
) -> list[int]:
    """Give every layer its value: a scalar broadcasts, a list must fit.

    Args:
        value: One integer, or one per layer.
        num_layers: Depth of the stack.
        key: Name of the setting, for the error message.
        lowest: Smallest value allowed.
        highest: Largest value allowed; None for no limit.

    Returns:
        ``num_layers`` integers.

    Raises:
        TypeError: If an entry is not an integer.
        ValueError: If the number of entries or an entry is out of range.
    """
    entries: list[Any] = (
        list(value)
        if isinstance(value, (list, tuple))
        else [value] * num_layers
    )
    if any(isinstance(v, bool) or not isinstance(v, int) for v in entries):
        raise TypeError(
            f'{key}={value!r}: expected an integer, or a list of one integer '
            'per layer'
        )
    if len(entries) != num_layers:
        raise ValueError(
            f'{key}={value!r} has {len(entries)} entries: expected one value, '
            f'or one for each of the {num_layers} layers'
        )
    limits = (
        f'of at least {lowest}'
        if highest is None
        else f'from {lowest} to {highest}'
    )
    for entry in entries:
        if entry < lowest or (highest is not None and entry > highest):
            raise ValueError(f'{key}={value!r}: expected values {limits}')
    return entries


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
        message = f'{key}={value!r}: expected an integer of at least {lowest}'
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(message)
        if value < lowest:
            raise ValueError(message)


def check_list(lowest: int, key: str, values: object) -> None:
    """Refuse what is not a list of integers, or holds one that is too small.

    Args:
        lowest: Smallest entry allowed.
        key: Name of the setting.
        values: What it is set to.

    Raises:
        TypeError: If it is no list, or an entry is not an integer.
        ValueError: If it is empty, or an entry is below ``lowest``.
    """
    message = (
        f'{key}={values!r}: expected a list of integers of at least {lowest}'
    )
    if not isinstance(values, (list, tuple)):
        raise TypeError(message)
    if not values:
        raise ValueError(message)
    check_at_least(lowest, **{f'{key}[{i}]': v for i, v in enumerate(values)})
