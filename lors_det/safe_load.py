# SPDX-License-Identifier: Apache-2.0
"""Read checkpoints as data: no code from a file is run.

A checkpoint of torch is a pickle, and a pickle may call any function. torch
refuses that with ``weights_only=True``. mmengine loads a refused file again
without it, and files from the network never with it. Here a refused file
stays refused, unless the user trusts it.
"""

from __future__ import annotations

import functools
import inspect
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor

from lors_det.errors import UsageError
from lors_det.files import atomic_write, check_file, find_damage

TRUST_FLAG = '--trust'
#: torch's own switch: no ``torch.load`` runs code, whatever its arguments.
FORCE_KEY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


def load_checkpoint(
    path: str | os.PathLike[str],
    map_location: Any = 'cpu',
    trust: bool = False,
    verify: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint from a file.

    Args:
        path: The file; its ending ``.safetensors`` chooses that format.
        map_location: Where tensors go, as in ``torch.load``.
        trust: Whether the file may run code while it is loaded.
        verify: Whether to read and verify all of the file; if not, tensors
            are read from it when they are used.

    Returns:
        The content of the file; ``state_dict`` and ``meta`` if it is a
        safetensors file. The config in ``meta``, which mmengine would run as
        Python to resume, is left out if the file is not trusted.

    Raises:
        UsageError: If the file is missing, empty, cut off or no checkpoint,
            or wants to run code and is not trusted.
    """
    name = os.fspath(path)
    check_file(name, 'checkpoint')
    damage = find_damage(name) if verify else None
    if damage:
        raise UsageError(f'{name} is damaged or cut off: {damage}')
    try:
        if name.endswith('.safetensors'):
            device = str(map_location or 'cpu')
            with safetensors.safe_open(name, 'pt', device) as file:
                meta = json.loads((file.metadata() or {}).get('meta', '{}'))
                state = {key: file.get_tensor(key) for key in file.keys()}
            return {'meta': meta, 'state_dict': state}
        with torch.serialization.safe_globals(ALLOWED):
            found = torch.load(
                name, map_location, weights_only=not trust, mmap=not verify
            )
    except Exception as error:  # each format has its own
        raise _refusal(name, error) from None
    if not isinstance(found, dict):
        raise UsageError(
            f'{name} holds a {type(found).__name__}, expected a checkpoint: '
            'a dict of tensors, or one with a state_dict'
        )
    return found if trust else _without_config(found)


def save_checkpoint(
    state_dict: dict[str, Tensor],
    meta: dict[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """Write a checkpoint; an interrupted write leaves no file of its name.

    Args:
        state_dict: Contiguous tensors that share no memory, by name.
        meta: What JSON can hold.
        path: The file; its ending ``.safetensors`` chooses that format.

    Raises:
        UsageError: If it cannot be written.
    """
    if os.fspath(path).endswith('.safetensors'):
        content = safetensors.torch.save(
            state_dict, {'meta': json.dumps(meta)}
        )
    else:
        buffer = io.BytesIO()
        torch.save({'meta': meta, 'state_dict': state_dict}, buffer)
        content = buffer.getvalue()
    atomic_write(path, content)


def install(trust: bool = False) -> None:
    """Make mmengine load all checkpoints of this process by these rules.

    These are what a run resumes, tests or starts from, and pretrained weights,
    from files and from the network.

    Args:
        trust: Whether files may run code while they are loaded.
    """
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        original = inspect.unwrap(loader)  # this may be the second call
        CheckpointLoader.register_scheme(
            prefix, original if trust else _guarded(original), force=True
        )

    @functools.wraps(CheckpointLoader._schemes[''])
    def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
        path = os.path.expanduser(filename)
        return load_checkpoint(path, map_location, trust)

    CheckpointLoader.register_scheme('', load_from_local, force=True)


def _guarded(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loader of mmengine, which fetches a file and loads it itself."""

    @functools.wraps(loader)
    def guarded(filename: str, *args: Any, **kwargs: Any) -> Any:
        # mmengine's own list has the real getattr.
        vars(checkpoint)['get_torch_safe_globals'] = lambda: ALLOWED
        before = os.environ.get(FORCE_KEY, '0')
        os.environ[FORCE_KEY] = '1'
        try:
            with torch.serialization.safe_globals(ALLOWED):
                found = loader(filename, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            raise _refusal(filename, error) from None
        finally:
            os.environ[FORCE_KEY] = before
        return _without_config(found)

    return guarded


def _refusal(name: str, error: Exception) -> UsageError:
    """Say in one line why torch did not read a file."""
    text = ' '.join(str(error).split())
    wanted = re.search(r'(?:GLOBAL|function|but got) (\S+)', text)
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return UsageError(
            f'{name} wants to run code while it is loaded ({wanted[1]}) and '
            f'was refused; if you trust where it comes from, add {TRUST_FLAG}'
        )
    return UsageError(
        f'{name} is no checkpoint, or cut off: expected a file written by '
        'torch.save, or one ending in .safetensors '
        f'({type(error).__name__}: {text.split(". ")[0]})'
    )


def _without_config(found: Any) -> Any:
    """Drop the config that mmcv 1.x stored: mmengine would run it."""
    if isinstance(found, dict) and isinstance(found.get('meta'), dict):
        found['meta'].pop('config', None)
    return found


def _history_method(owner: Any, name: str) -> Any:
    """Replace ``getattr``, by which `HistoryBuffer` is pickled.

    The real one would reach every object of the process.
    """
    if owner is HistoryBuffer and name in ('min', 'max', 'mean', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError('unsupported GLOBAL builtins.getattr')


#: What a checkpoint of mmengine or mmcv holds besides tensors: the history
#: of the log, and arrays and numbers of numpy, whose two functions have other
#: names in numpy 1. Nothing here runs anything. (To mypy, the first entry of
#: ``__reduce__`` may be a string.)
ALLOWED: list[Any] = [
    (_history_method, 'builtins.getattr'), HistoryBuffer, np.ndarray, np.dtype,
    *(type(np.dtype(code)) for code in '?bhilqBHILQefdgFDGSU'),
    *(
        (function, f'{module}.{function.__name__}')  # type: ignore[union-attr]
        for function in (
            np.zeros(0).__reduce__()[0], np.float64().__reduce__()[0]
        )
        for module in ('numpy._core.multiarray', 'numpy.core.multiarray')
    ),
]  # fmt: skip
