# SPDX-License-Identifier: Apache-2.0
"""One rule for all commands: what fails at the start ends in one line.

No component has to check its settings for it: the traceback of an error shows
which part of the config was being built or run. Imports no torch.
"""

from __future__ import annotations

import difflib
import errno
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any

from lors_det.errors import UsageError, one_line

PathInConfig = tuple[str, ...]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNKNOWN_TYPE = 'is not in the .+ registry|^Failed to get|is not a callable'


class OneLineErrors(AbstractContextManager['OneLineErrors']):
    """Turn errors inside of a ``with`` block into one line and exit status 1.

    `UsageError`, a full disk and Ctrl-C end in one line at any time. Once the
    config is read and until the first batch is done, every other error counts
    as a mistake in the config: the line is ``error: CONFIG: key.path=value:
    reason``, and the traceback goes to ``error.log`` in the work directory.
    Errors before and after that keep their traceback.

    Args:
        cfg: The config; or set it later, as an attribute.
        how_to_resume: What to say after Ctrl-C without a work directory.

    Attributes:
        loop: ``train``, ``val`` or ``test``: whose settings are named first.
        first_batch_done: Whether the settings have proved to work.
        show_traceback: Whether to print the traceback too.
    """

    def __init__(self, cfg: Any = None, how_to_resume: str = '') -> None:
        self.cfg = cfg or {}
        self.how_to_resume = how_to_resume
        self.loop = 'train'
        self.first_batch_done = False
        self.show_traceback = False

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        """Raise ``SystemExit`` with the line that describes an error."""
        resume = self._how_to_resume()
        if isinstance(error, KeyboardInterrupt):
            print(f'\ninterrupted{resume}', file=sys.stderr)
            raise SystemExit(130) from None
        if not isinstance(error, Exception):
            return
        text = ''.join(traceback.format_exception(error))
        if isinstance(error, UsageError):
            line = str(error)
        elif isinstance(error, OSError) and error.errno in NO_SPACE:
            folder = self.cfg.get('work_dir') or error.filename
            line = f'{folder}: {error.strerror}: make room{resume}'
        elif self.first_batch_done or not self.cfg:
            return
        else:
            line = self._describe(error)
            if self.cfg.get('work_dir'):
                line += self._log(text)
        if self.show_traceback:
            sys.stderr.write(text)
        if 'TORCHELASTIC_ERROR_FILE' in os.environ:
            from torch.distributed.elastic.multiprocessing import errors

            errors.get_error_handler().record_exception(UsageError(line))
        raise SystemExit(f'error: {line}') from None

    def _describe(self, error: Exception) -> str:
        """Name the setting that is wrong."""
        from mmengine.runner import Runner  # late: --help needs no torch

        taken = {*inspect.signature(Runner.__init__).parameters} & {*self.cfg}
        keys = sorted(taken, key=lambda key: not key.startswith(self.loop))
        try:
            return _describe(error, {key: self.cfg[key] for key in keys})
        except Exception:  # must not hide the error that is described
            return f'CONFIG: {one_line(error)}'

    def _how_to_resume(self) -> str:
        """Return the end of a message about a run that did not finish."""
        folder = self.cfg.get('work_dir')
        if not folder:
            return self.how_to_resume and f'; {self.how_to_resume}'
        if not any(Path(folder).glob('*.pth')):
            return '; no checkpoint was written'
        return (
            '; the same command with --resume continues from the last '
            f'checkpoint in {folder}'
        )

    def _log(self, text: str) -> str:
        """Append a traceback to the log; return where it can be read."""
        path = Path(self.cfg['work_dir'], 'error.log')
        with suppress(OSError), path.open('a', encoding='utf-8') as file:
            file.write(text)
            return f' (traceback: {path})'
        return ''


def suggest(name: str, names: Iterable[str]) -> str:
    """Say which names are right, as the end of a message.

    Args:
        name: A name that is wrong.
        names: Those that would be right.
    """
    names = sorted({*names} - {'self', 'args', 'kwargs'})
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f'; did you mean {close[0]!r}?'
    return f'; expected one of {names}' if 0 < len(names) <= 20 else ''


def walk_config(
    node: Any, path: PathInConfig = ()
) -> Iterator[tuple[PathInConfig, Any]]:
    """Yield all entries of a config with their paths, outer ones first.

    Args:
        node: The config, or a part of it.
        path: Path of the part.
    """
    yield path, node
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from walk_config(value, (*path, str(name)))


def _describe(error: Exception, settings: dict[str, Any]) -> str:
    """Name the setting that an error is about."""
    frames = _frames(error)
    entries = {p: v for p, v in walk_config(settings) if p}
    parts = {p: v for p, v in entries.items() if isinstance(v, Mapping)}
    path = _part_in_use(frames, parts) or _variable(frames, entries)
    text = one_line(error)
    # Our own messages begin with their key, some with a class before it.
    keyed = re.match(r'(?:model\.|[A-Z]\w+\.)?((\w+)[\w.\[\]]*)=', text)
    if keyed:
        while path and keyed[2] not in parts.get(path, ()):
            path = path[:-1]
        return f'CONFIG: {".".join((*path, ""))}{text[keyed.start(1) :]}'
    if re.search(UNKNOWN_TYPE, text) and 'type' in parts.get(path, ()):
        keys = {str(value): key for key, value in parts[path].items()}
        path = (*path, keys.get(_local(frames, 'obj_type'), 'type'))
        text = _unknown_type(str(entries[path]), frames)
    elif re.match('`?cfg`? ', text):  # of mmengine, about what it builds
        wanted = _local(frames, 'cfg')
        own = (p for p in entries if p[:-1] == path and entries[p] is wanted)
        path = next(own, path)
    else:
        path = _complete(path, text, entries)
    if not path:
        return f'CONFIG: {text}'
    if f"unexpected keyword argument '{path[-1]}'" in text:
        classes = getattr(_local(frames, 'obj_cls'), '__mro__', ())
        makers = [inspect.signature(each.__init__) for each in classes]
        taken = {name for maker in makers for name in maker.parameters}
        text = f'unknown key{suggest(path[-1], taken)}'
    value = shorten(repr(entries[path]), 100)
    return f'CONFIG: {".".join(path)}={value}: {text}'


def _frames(error: BaseException) -> list[FrameType]:
    """Return the frames that failed, of the first cause, innermost first."""
    found = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    causes = _frames(error.__cause__) if error.__cause__ else []
    return causes + found[::-1]


def _local(frames: list[FrameType], name: str) -> Any:
    """Return the innermost local variable of a name."""
    return next((f.f_locals[name] for f in frames if name in f.f_locals), None)


def _part_in_use(
    frames: list[FrameType], parts: dict[PathInConfig, Mapping[str, Any]]
) -> PathInConfig:
    """Find the part of the config that was being built, or else used.

    What builds a part has its config in a variable; what is used is an object
    of the class that the part's ``type`` names.
    """
    built: list[Mapping[str, Any]] = []
    used: list[Mapping[str, Any]] = []
    for frame in frames:
        values = [frame.f_locals.get('optimizer_cfg')]
        if re.match('_?build', frame.f_code.co_name):
            values += frame.f_locals.values()
        built += [v for v in values if isinstance(v, Mapping) and v]
        # mmengine drops the traceback of some errors of hooks.
        user = frame.f_locals.get('hook', frame.f_locals.get('self'))
        if not type(user).__name__.endswith('Loop'):  # it runs what fails
            used.append({'type': type(user).__name__})
    for config in built + used:
        # mmengine completes its copies: the most similar entry is meant.
        similar = {
            path: sum(config.get(key) == node[key] for key in node)
            for path, node in parts.items()
            if node == config or node.get('type', '') == config.get('type')
        }
        if similar:
            return max(similar, key=similar.__getitem__)
    return ()


def _variable(
    frames: list[FrameType], entries: dict[PathInConfig, Any]
) -> PathInConfig:
    """Find the setting that was in a variable of its name."""
    for frame in frames:
        if frame.f_code.co_name == '__init__':
            continue  # the runner's has all settings in variables
        for path, value in entries.items():
            # mmengine reads what load_from names as ``filename``.
            name = 'filename' if path == ('load_from',) else path[-1]
            is_plain = value in (None, True, False)  # as many variables are
            if frame.f_locals.get(name) is value and not is_plain:
                return path
    return ()


def _complete(
    path: PathInConfig, text: str, entries: dict[PathInConfig, Any]
) -> PathInConfig:
    """Complete a path by the key, or else the value, that a message names."""
    words = re.findall(r'\w+', text)
    own = [p for p in entries if p[:-1] == path and p[-1] != 'type']
    found = [p for p in own if p[-1] in words]
    if not path or path[0].endswith('_hooks'):  # they check other settings
        found += [p for p in entries if '_' in p[-1] and p[-1] in words]
        found += [p for p in own if text.startswith(f'{entries[p]}: ')]
    for p in own:
        shown = rf'(?<![\w.]){re.escape(repr(entries[p]))}(?![\w.])'
        if entries[p] not in (None, True, False) and re.search(shown, text):
            found.append(p)
    return found[0] if found else path


def _unknown_type(name: str, frames: list[FrameType]) -> str:
    """Say why a registry does not have a class."""
    package = name.split('.')[0]
    if '.' in name and package not in sys.modules:
        return f'the package {package!r} is not installed'
    registry = _local(frames, 'registry')
    inherited = getattr(registry.parent, 'module_dict', ())
    names = {*registry.module_dict, *inherited}
    return f'no {registry.name} of this name{suggest(name, names)}'
