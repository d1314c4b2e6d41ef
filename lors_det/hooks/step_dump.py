# SPDX-License-Identifier: Apache-2.0
"""Files that hold one training step, and making that step again."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

KINDS = {
    kind.__name__: kind for kind in (DetDataSample, InstanceData, PixelData)
}
KIND = '__kind__'


def replay(
    model: BaseModel, dump: Mapping[str, Any], index: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make the forward of a dumped step again.

    Example::

        dump = torch.load('iter_12_rank_0.pth', weights_only=True)
        model = MODELS.build(Config.fromfile(CONFIG).model)
        loss, losses = replay(model, dump)

    Args:
        model: Built from the same config; receives the dump's weights.
        dump: What `NonFiniteHook` has written.
        index: Which of its batches.

    Returns:
        The loss to call ``backward`` on, and all losses by name.
    """
    entry = dump['batches'][index]
    model.load_state_dict(dump['state_dict'])
    model.train()
    set_random_states(entry['random_states'])
    data = model.data_preprocessor(from_plain(entry['batch']), True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    return loss, losses


def write_dump(
    path: Path,
    model: nn.Module,
    batches: Sequence[Mapping[str, Any]],
    **about: Any,
) -> None:
    """Write a dump; an interrupted write leaves no file of its name.

    Args:
        path: The file.
        model: Gives the weights, without what wraps it.
        batches: What went into the step.
        about: Further entries, plain data.

    Raises:
        OSError: If it cannot be written.
        RuntimeError: The same, from torch.
    """
    inner: Any = model.module if is_model_wrapper(model) else model
    content = {
        **about,
        'batches': to_plain(batches),
        'state_dict': dict(inner.state_dict()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix('.part')
    try:
        torch.save(content, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def image_ids(batch: Any) -> list[Any]:
    """The ids of the images of a batch, where it has such.

    Args:
        batch: As it comes from the loader.
    """
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    return [sample.get('img_id') for sample in samples]


def spoilt_statistics(model: nn.Module) -> list[str]:
    """Statistics of norms that a forward has spoilt: no step mends them.

    Args:
        model: The model.

    Returns:
        Names of buffers that are not finite.
    """
    return [
        name
        for name, buffer in model.named_buffers()
        if 'running_' in name and not buffer.isfinite().all()
    ]


def random_states() -> dict[str, Any]:
    """The states of all generators, as data."""
    states: dict[str, Any] = {
        'python': random.getstate(),
        'numpy': to_plain(np.random.get_state()),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_available():  # of the host's memory: no wait
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `random_states` has given.

    Args:
        states: The states.
    """
    random.setstate(states['python'])
    name, keys, *rest = states['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states['torch'])
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'])


def to_plain(value: Any) -> Any:
    """Data samples and the like as what torch loads without running code.

    Args:
        value: Anything; what is no data becomes its ``repr``.

    Returns:
        Tensors, numbers, strings, and dicts, lists and tuples of them.
    """
    if isinstance(value, BaseDataElement):
        return {
            KIND: type(value).__name__,
            'metainfo': to_plain(dict(value.metainfo_items())),
            'data': to_plain(dict(value.items())),
        }
    if isinstance(value, BaseBoxes):
        return {KIND: HorizontalBoxes.__name__, 'tensor': value.tensor.cpu()}
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
        if value.dtype.kind == 'u' and value.dtype != np.uint8:
            value = value.astype(np.int64)  # torch has few unsigned types
        return torch.as_tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: to_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [to_plain(entry) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def from_plain(value: Any) -> Any:
    """Undo `to_plain`.

    Args:
        value: What `to_plain` has given.
    """
    if isinstance(value, dict):
        kind = value.get(KIND)
        if kind == HorizontalBoxes.__name__:
            return HorizontalBoxes(value['tensor'])
        if kind is not None:
            element = KINDS[kind](metainfo=from_plain(value['metainfo']))
            for name, entry in value['data'].items():
                element.set_field(from_plain(entry), name)
            return element
        return {key: from_plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(from_plain(entry) for entry in value)
    return value
