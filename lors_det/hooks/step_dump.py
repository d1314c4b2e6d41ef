# SPDX-License-Identifier: Apache-2.0
"""Files that hold one training step, and making that step again."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from lors_det.files import atomic_write
from lors_det.safe_load import load_checkpoint

#: What a batch holds besides tensors, numbers and text.
BATCH_TYPES = [DetDataSample, HorizontalBoxes, InstanceData, PixelData]


def write_dump(
    path: str | os.PathLike[str],
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    **about: Any,
) -> None:
    """Write what makes a step again.

    Args:
        path: The file.
        model: Its weights are stored, without its wrapper.
        batches: For each batch of the step ``batch``, as it came from the
            loader, and `random_states` before its forward.
        about: Further entries.

    Raises:
        UsageError: If the file cannot be written.
    """
    inner: Any = model.module if is_model_wrapper(model) else model
    buffer = io.BytesIO()
    state = inner.state_dict()
    torch.save({**about, 'batches': batches, 'state_dict': state}, buffer)
    atomic_write(path, buffer.getvalue())


def load_dump(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a dump without running code from it.

    Args:
        path: The file.

    Raises:
        UsageError: If it is no dump, or holds other types than those of
            mmdet's batches.
    """
    with torch.serialization.safe_globals(BATCH_TYPES):
        return load_checkpoint(path)


def replay(
    model: BaseModel, path: str | os.PathLike[str], index: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make the forward of a dumped step again.

    Example::

        model = MODELS.build(Config.fromfile(CONFIG).model)
        loss, losses = replay(model, 'iter_12_rank_0.pth')

    Args:
        model: Built from the same config; receives the dump's weights.
        path: A file written by `NonFiniteHook`.
        index: Which of its batches.

    Returns:
        The loss to call ``backward`` on, and all losses by name.
    """
    dump = load_dump(path)
    entry = dump['batches'][index]
    model.load_state_dict(dump['state_dict'])
    model.train()
    restore_random_states(entry['random_states'])
    data = model.data_preprocessor(entry['batch'], True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    return loss, losses


def random_states() -> dict[str, Any]:
    """Return the states of the generators of Python, numpy and torch."""
    states = {
        'python': random.getstate(),
        'numpy': np.random.get_state(),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():  # kept on the host: no wait
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set all generators.

    Args:
        states: From `random_states`.
    """
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'])
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'])
