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
from pathlib import Path
from textwrap import shorten
from types import FrameType, TracebackType
from typing import Any
from urllib.error import URLError

from lors_det.errors import UsageError, one_line

PathInConfig = tuple[str, ...]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
UNKNOWN_TYPE = (
    'is not in the .+ registry|^Failed to get|^None is not a callable object'
)
NO_CONFIG = 'cfg should be a dict|must contain the key "type"'
#: Functions of mmengine that read one setting.
READERS = {'load_or_resume': 'load_from', 'set_randomness': 'randomness'}


class OneLineErrors:
    """Turn errors inside of a ``with`` block into one line and exit status 1.

    `UsageError`, a full disk and Ctrl-C end in one line at any time. Once the
    config is read and until the first batch is done, every other error counts
    as a mistake in the config: the line is ``error: CONFIG: key.path=value:
    reason``, and the traceback goes to ``error.log`` in the work directory.
    Errors before and after that keep their traceback.

    Args:
        cfg: The config; or set it later, as an attribute.
        how_to_resume: What a user is told after Ctrl-C, if it is no run with
            a work directory.

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

    def __enter__(self) -> OneLineErrors:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise ``SystemExit`` with the line that describes the error.

        Args:
            kind: Class of the error.
            error: The error, if there is one.
            trace: Its traceback.
        """
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
            line = self._describe(error) + self._log(text)
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
        if not self.cfg.get('work_dir'):
            return ''
        path = Path(self.cfg['work_dir'], 'error.log')
        try:
            with path.open('a', encoding='utf-8') as file:
                file.write(text)
        except OSError:
            return ' (--traceback shows where)'
        return f' (traceback: {path})'


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
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, Mapping):
        entries = node.items()
    elif isinstance(node, (list, tuple)):
        entries = enumerate(node)
    for name, value in entries:
        yield from walk_config(value, (*path, str(name)))


def _describe(error: Exception, settings: dict[str, Any]) -> str:
    """Name the setting that an error is about."""
    frames = _frames(error)
    path = _part_in_use(frames, settings)
    part = _get(settings, path)
    text = one_line(error)
    # Some messages begin with the class.
    keyed = re.match(r'(?:model\.|[A-Z]\w+\.)?((\w+)[\w.\[\]]*)=', text)
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", text)
    if keyed:  # the message names its key: complete the path
        while path and keyed[2] not in _keys(_get(settings, path)):
            path = path[:-1]
        return f'CONFIG: {".".join((*path, ""))}{text[keyed.start(1) :]}'
    if unexpected and unexpected[1] in _keys(part):
        path = (*path, unexpected[1])
        taken = _arguments(_local(frames, 'obj_cls'))
        text = f'unknown key{suggest(path[-1], taken)}'
    elif re.search(UNKNOWN_TYPE, text) and 'type' in _keys(part):
        wanted = _local(frames, 'obj_type')
        keys = (key for key in part if wanted and part[key] == wanted)
        path = (*path, next(keys, 'type'))
        text = _unknown_type(str(part[path[-1]]), frames)
    elif isinstance(error, URLError):
        text = f'cannot be downloaded ({error.reason}); where there is no '
        text += 'network, fetch the file elsewhere and give its path'
    elif re.search(NO_CONFIG, text):
        wanted = _local(frames, 'cfg')
        found = (p for p, v in walk_config(part, path) if v is wanted)
        path, text = next(found, path), "expected a dict with 'type'"
    else:
        path = _key_in_text(text, path, settings)
    if not path:
        return f'CONFIG: {text}'
    value = shorten(repr(_get(settings, path)), 100)
    return f'CONFIG: {".".join(path)}={value}: {text}'


def _frames(error: BaseException) -> list[FrameType]:
    """Return the frames that failed, of the first cause, innermost first."""
    found = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    causes = _frames(error.__cause__) if error.__cause__ else []
    return causes + found[::-1]


def _local(frames: list[FrameType], name: str) -> Any:
    """Return the innermost local variable of a name."""
    return next((f.f_locals[name] for f in frames if name in f.f_locals), None)


def _arguments(built: Any) -> set[str]:
    """Return the names that a class or function takes."""
    makers = [each.__init__ for each in getattr(built, '__mro__', ())]
    makers = makers or ([built] if callable(built) else [])
    return {name for f in makers for name in inspect.signature(f).parameters}


def _keys(node: Any) -> set[str]:
    return set(node) if isinstance(node, Mapping) else set()


def _get(node: Any, path: PathInConfig) -> Any:
    """Return what the config has at a path; None if nothing."""
    return dict(walk_config(node)).get(path)


def _part_in_use(
    frames: list[FrameType], settings: dict[str, Any]
) -> PathInConfig:
    """Find the part of the config that was being built, or else used.

    Functions that build a part have its config as an argument; methods of the
    runner have arguments named like the settings that they read.
    """
    for frame in frames:
        code = frame.f_code
        if code.co_name in READERS:
            return (READERS[code.co_name],)
        # The last is a local variable of what builds optimisers.
        names = (*code.co_varnames[: code.co_argcount], 'optimizer_cfg')
        builds = code.co_name.lstrip('_').startswith('build')
        is_runner = code.co_filename.endswith('mmengine/runner/runner.py')
        for name in names:
            if builds or name == 'optimizer_cfg':
                path = _most_similar(frame.f_locals.get(name), settings)
                if path:
                    return path
            if is_runner and code.co_name != '__init__' and name in settings:
                return (name,)
    for frame in frames:
        # mmengine drops the traceback of some errors of hooks.
        user = frame.f_locals.get('hook', frame.f_locals.get('self'))
        for path, node in walk_config(settings):
            if _keys(node) and node.get('type') == type(user).__name__:
                # A loop runs what fails: it is seldom to blame.
                is_loop = path[0].endswith('_cfg')
                return () if is_loop and frame is not frames[0] else path
    return ()


def _most_similar(wanted: Any, settings: dict[str, Any]) -> PathInConfig:
    """Find the entry that a config was copied from.

    mmengine completes its copies: of the entries with the same type, the one
    with the most values in common is taken.
    """
    if not isinstance(wanted, Mapping):
        return ()
    similar = {
        path: sum(wanted.get(key) == node[key] for key in node)
        for path, node in walk_config(settings)
        if _keys(node)
        and (node == wanted or node.get('type', '') == wanted.get('type'))
    }
    return max(similar, key=similar.__getitem__, default=())


def _key_in_text(
    text: str, path: PathInConfig, settings: dict[str, Any]
) -> PathInConfig:
    """Complete a path by the key or value that a message speaks of."""
    for found, value in walk_config(settings):
        if isinstance(value, str) and text.startswith(
            (f'{value}: ', f'{os.path.abspath(value)}: ')
        ):
            return found  # the file that the message begins with
    words = set(re.findall(r'\w+', text))
    part = _get(settings, path) if path else None
    entries = dict(part) if isinstance(part, Mapping) else {}
    entries.pop('type', None)
    for key in entries:
        if key in words:
            return (*path, key)
    for key, value in entries.items():
        shown = re.escape(repr(value))
        if value not in (None, True, False) and re.search(
            rf'(?<![\w.]){shown}(?![\w.])', text
        ):
            return (*path, key)
    texts = [key for key, value in entries.items() if isinstance(value, str)]
    if "'str'" in text and len(texts) == 1:  # a wrong type
        return (*path, *texts)
    if not path or path[0].endswith('_hooks'):  # they check other settings
        for found, _ in walk_config(settings):
            if found and found[-1] in words and '_' in found[-1]:
                return found
    return path


def _unknown_type(name: str, frames: list[FrameType]) -> str:
    """Say why a registry does not have a class."""
    package = name.split('.')[0]
    if '.' in name and package not in sys.modules:
        return f'the package {package!r} is not installed'
    registry, names = _local(frames, 'registry'), set()
    kind = registry.name
    while registry is not None:  # an empty one is false
        names |= set(registry.module_dict)
        registry = registry.parent
    return f'no {kind} of this name{suggest(name, names)}'
