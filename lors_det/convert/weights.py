# SPDX-License-Identifier: Apache-2.0
"""Find the weights in a checkpoint, plain or averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lors_det.errors import UsageError

#: Entries beside ``state_dict`` that hold averaged weights.
EMA_ENTRIES = ('state_dict_ema', 'ema_state_dict')


def read_weights(
    checkpoint: Mapping[str, Any], file: str, ema: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights of a checkpoint.

    Args:
        checkpoint: What the file holds: ``state_dict`` among other entries,
            or the tensors themselves.
        file: Name of the file, for error messages.
        ema: Whether to take the averaged weights (exponential moving
            average) instead of the plain ones.

    Returns:
        Tensors by name, without the prefix ``module.``; and a line for the
        user about each entry that was left out.

    Raises:
        UsageError: If there are no weights, or no averaged ones.
    """
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict) or not any(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise UsageError(f'{file} has no weights: no state_dict, no tensors')
    dropped = []
    if state is not checkpoint:
        dropped = [
            f'{key}: not converted'
            for key in checkpoint
            if key not in ('state_dict', 'meta', *EMA_ENTRIES)
        ]
    plain, averaged = _split_ema(_tensors(state))
    if 'steps' in checkpoint.get('ema_state_dict', ()):
        # mmengine's EMAHook swaps the two when it saves.
        dropped.append(
            "ema_state_dict: mmengine's values before averaging, not "
            'converted; state_dict has the averaged ones'
        )
        return plain, dropped
    for entry in EMA_ENTRIES:
        if isinstance(checkpoint.get(entry), dict):
            averaged.update(_tensors(checkpoint[entry]))
    if not ema:
        if averaged:
            dropped.append(
                f'{len(averaged)} averaged tensors (EMA): not converted; '
                '--ema takes them instead of the plain ones'
            )
        return plain, dropped
    if not averaged:
        raise UsageError(
            f'--ema: {file} has no averaged weights: no tensors ema_*, no '
            f'{" or ".join(EMA_ENTRIES)}'
        )
    kept = {name: averaged.pop(name, x) for name, x in plain.items()}
    dropped.append('the plain values of averaged tensors: not converted')
    return {**kept, **averaged}, dropped


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, without the prefix of a distributed wrapper."""
    return {
        name.removeprefix('module.'): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _split_ema(
    state: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the plain and the averaged tensors of a state dict.

    mmcv's EMAHook stores the average of ``a.b`` as ``ema_a_b``.
    """
    names = {f'ema_{name.replace(".", "_")}': name for name in state}
    averaged = {names[k]: v for k, v in state.items() if k in names}
    plain = {k: v for k, v in state.items() if k not in names}
    return plain, averaged
