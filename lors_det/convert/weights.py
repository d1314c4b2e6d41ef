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
    tensors = _tensors(state) if isinstance(state, dict) else {}
    if not tensors:
        raise UsageError(f'{file} has no weights: no state_dict, no tensors')
    dropped = []
    if state is not checkpoint:
        dropped = [
            f'{key}: not converted'
            for key in checkpoint
            if key not in ('state_dict', 'meta', *EMA_ENTRIES)
        ]
    # mmcv's EMAHook stores the average of ``a.b`` as ``ema_a_b``.
    names = {f'ema_{name.replace(".", "_")}': name for name in tensors}
    averaged = {
        name: tensors.pop(k) for k, name in names.items() if k in tensors
    }
    if 'steps' in checkpoint.get('ema_state_dict', ()):
        # mmengine's EMAHook swaps the two when it saves.
        dropped.append(
            "ema_state_dict: mmengine's values before averaging, not "
            'converted; state_dict has the averaged ones'
        )
        return tensors, dropped
    for entry in EMA_ENTRIES:
        if isinstance(checkpoint.get(entry), dict):
            averaged.update(_tensors(checkpoint[entry]))
    if ema and not averaged:
        raise UsageError(
            f'--ema: {file} has no averaged weights: no tensors ema_*, no '
            f'{" or ".join(EMA_ENTRIES)}'
        )
    if ema:
        dropped.append('the plain values of averaged tensors: not converted')
        return {**tensors, **averaged}, dropped
    if averaged:
        dropped.append(
            f'{len(averaged)} averaged tensors (EMA): not converted; --ema '
            'takes them instead of the plain ones'
        )
    return tensors, dropped


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, without the prefix of a distributed wrapper."""
    return {
        name.removeprefix('module.'): value
        for name, value in state.items()
        if isinstance(value, Tensor)
    }
