# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints as data: no code from a file is run.

A checkpoint of torch is a pickle, and a pickle may call any function. torch
can refuse that; mmengine asks for it first, but loads a refused file without
the protection, and files from the network always so. Here a refused file
stays refused, unless its user says that it is trusted.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import pickle
import pickletools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from torch import Tensor

from lors_det.errors import UsageError
from lors_det.files import check_file
from lors_det.hooks.checkpoint import damage, is_archive

TRUST_FLAG = '--trust'


def load_checkpoint(
    path: str | os.PathLike[str],
    map_location: Any = 'cpu',
    trust: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint from a file; ``.safetensors`` by its ending.

    Args:
        path: The file.
        map_location: Where tensors go, as in ``torch.load``.
        trust: Whether the file may run code while it is loaded.

    Returns:
        What the file holds; for a safetensors file ``state_dict`` and
        ``meta``.

    Raises:
        UsageError: If the file is missing, empty, cut off or no checkpoint,
            or wants to run code and is not trusted.
    """
    name = os.fspath(path)
    check_file(name, 'checkpoint')
    with _explained(name, is_file=True):
        if name.endswith('.safetensors'):
            return _load_safetensors(name, map_location)
        if is_archive(name) and (wrong := damage(name)):
            raise UsageError(f'{name} is damaged or cut off: {wrong}')
        if trust:
            found = torch.load(name, map_location, weights_only=False)
        else:
            with torch.serialization.safe_globals(_allowed()):
                found = torch.load(name, map_location, weights_only=True)
    if not isinstance(found, dict):
        raise UsageError(
            f'{name} holds a {type(found).__name__}, expected a checkpoint: '
            'a dict of tensors, or one with a state_dict'
        )
    return found


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
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + '.part')
    if target.suffix == '.safetensors':
        safetensors.torch.save_file(
            state_dict, part, metadata={'meta': json.dumps(meta)}
        )
    else:
        torch.save({'meta': meta, 'state_dict': state_dict}, part)
    part.replace(target)


def install(trust: bool = False) -> None:
    """Make mmengine load all checkpoints of this process by these rules.

    That is what runners resume, test and start from, and pretrained weights
    of backbones, from files and from the network.

    Args:
        trust: Whether files may run code while they are loaded.
    """
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        original = inspect.unwrap(loader)  # this may be the second call
        CheckpointLoader.register_scheme(
            prefix,
            original if trust else _guarded(original),
            force=True,
        )

    @functools.wraps(CheckpointLoader._schemes[''])
    def load_from_local(filename: str, map_location: Any) -> dict[str, Any]:
        path = os.path.expanduser(filename)
        found = load_checkpoint(path, map_location, trust)
        return found if trust else _without_config(found)

    CheckpointLoader.register_scheme('', load_from_local, force=True)


def _guarded(loader: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of mmengine that gets no pickled code past torch."""

    @functools.wraps(loader)
    def guarded(filename: str, *args: Any, **kwargs: Any) -> Any:
        with _explained(filename), _weights_only():
            return _without_config(loader(filename, *args, **kwargs))

    return guarded


@contextmanager
def _weights_only() -> Iterator[None]:
    """Have every ``torch.load`` refuse code, whatever it is called with.

    mmengine's loaders fetch a file and call ``torch.load`` themselves, some
    with ``weights_only=False``; torch's own switch overrules that.
    """
    key = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    switch = os.environ.get(key)
    their_list = vars(checkpoint).get('get_torch_safe_globals')
    os.environ[key] = '1'
    # mmengine's own list has the real getattr.
    vars(checkpoint)['get_torch_safe_globals'] = _allowed
    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    finally:
        vars(checkpoint)['get_torch_safe_globals'] = their_list
        del os.environ[key]
        if switch is not None:
            os.environ[key] = switch


def _without_config(found: Any) -> Any:
    """Drop the config text, which mmengine would run as Python to resume.

    It looks there for the number of GPUs that mmcv 1.x wrote; mmengine's own
    checkpoints have no such entry.
    """
    if isinstance(found, dict) and isinstance(found.get('meta'), dict):
        found['meta'].pop('config', None)
    return found


@contextmanager
def _explained(name: str, is_file: bool = False) -> Iterator[None]:
    """Turn what reading a wrong file raises into one line.

    Args:
        name: The file or address.
        is_file: Whether nothing but a file is read: then whatever goes wrong
            is the file's fault, and the unpickler fails in as many ways as
            there are wrong files.
    """
    try:
        yield
    except UsageError:
        raise
    except pickle.UnpicklingError as error:
        wanted = _wanted(name, str(error))
        if wanted is None:
            raise UsageError(_not_a_checkpoint(name)) from None
        raise UsageError(
            f'{name} wants to run code while it is loaded ({wanted}) and was '
            f'refused; if you trust where it comes from, add {TRUST_FLAG}'
        ) from None
    except safetensors.SafetensorError as error:
        raise UsageError(
            f'{name} is no safetensors file, or cut off: {error}'
        ) from None
    except Exception as error:
        text = str(error).split('. ')[0] or 'no data'
        if isinstance(error, PermissionError):
            raise UsageError(f'{name} cannot be read: {text}') from None
        if 'PytorchStreamReader' in text or (
            # torch seeks in front of a file that is shorter than it says.
            is_file and isinstance(error, OSError)
        ):
            raise UsageError(f'{name} is damaged or cut off: {text}') from None
        if not is_file:
            raise  # of the network, and it says so itself
        raise UsageError(
            f'{_not_a_checkpoint(name)} ({type(error).__name__}: {text})'
        ) from None


def _not_a_checkpoint(name: str) -> str:
    return (
        f'{name} is no checkpoint, or cut off: torch cannot read it, expected '
        'what torch.save wrote (or a file ending in .safetensors)'
    )


def _wanted(name: str, message: str) -> str | None:
    """What a refused pickle wanted: by torch's message, or by the file's.

    Args:
        name: The file, if it is one.
        message: What torch's unpickler says.

    Returns:
        Names of functions or classes; None if the file wants none.
    """
    for pattern in (
        r'GLOBAL (\S+) was not an allowed global',
        r'unsupported GLOBAL (\S+)',
        r'reduce for unrecognized function (.+)',
        r'but got (.+)',
    ):
        found = re.search(pattern, message)
        if found:
            return found[1]
    # torch stops at the first opcode of pickle protocol 4 that it does not
    # know; trusted, such a file would run.
    strings: list[Any] = []
    names = []
    try:
        with open(name, 'rb') as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == 'STACK_GLOBAL':
                    names.append('.'.join(map(str, strings[-2:])))
                elif opcode.name == 'GLOBAL':
                    names.append(str(argument).replace(' ', '.'))
                elif isinstance(argument, str):
                    strings.append(argument)
    except (OSError, ValueError):
        pass  # no file, or no pickle from here on
    return ', '.join(names) or None


def _load_safetensors(path: str, map_location: Any) -> dict[str, Any]:
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, 'pt') as file:
        meta = json.loads((file.metadata() or {}).get('meta', '{}'))
    if map_location is not None:
        tensors = {k: v.to(map_location) for k, v in tensors.items()}
    return {'meta': meta, 'state_dict': tensors}


@functools.cache
def _allowed() -> list[Any]:
    """What a checkpoint of mmengine or mmcv holds besides tensors.

    The log's history, numbers of numpy (under the old and the new name of
    numpy's module) and no function that runs anything.
    """
    # numpy names these two functions only where it pickles something.
    functions: tuple[Any, ...] = (
        np.zeros(0).__reduce__()[0],
        np.float64().__reduce__()[0],
    )
    allowed: list[Any] = [np.ndarray, np.dtype, HistoryBuffer]
    allowed += [type(np.dtype(code)) for code in '?bhilqBHILQefdgFDGSU']
    for function in functions:
        for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
            allowed.append((function, f'{module}.{function.__name__}'))
    allowed.append((_history_method, 'builtins.getattr'))
    return allowed


def _history_method(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, which `HistoryBuffer` pickles itself with.

    The real one would reach every object of the process.
    """
    if owner is not HistoryBuffer or name not in (
        'min', 'max', 'mean', 'current'
    ):  # fmt: skip
        raise pickle.UnpicklingError('unsupported GLOBAL builtins.getattr')
    return getattr(HistoryBuffer, name)
