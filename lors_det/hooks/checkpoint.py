# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole: written beside, renamed, verified.

torch writes a zip archive with a checksum (CRC-32) of every tensor, and does
not look at it when it reads. Here it is looked at.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from lors_det.errors import UsageError
from lors_det.files import PART, atomic_write


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as those of ``torch.save`` do.

    Args:
        path: The file.
    """
    with open(path, 'rb') as file:
        return file.read(4) == b'PK\x03\x04'


def damage(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with a checkpoint that ``torch.save`` wrote.

    Reads the whole file once.

    Args:
        path: The file.

    Returns:
        The reason in a few words; None if all checksums are right.
    """
    if not zipfile.is_zipfile(path):
        return 'its end is missing'
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # there are as many as ways to be damaged
        return str(error) or type(error).__name__
    return entry and f'wrong checksum of {entry}'


def newest_checkpoint(work_dir: str, since: int = 0) -> str | None:
    """The newest checkpoint of a run that is whole.

    Those that are not are reported, a line each.

    Args:
        work_dir: Folder of the run.
        since: Only files not older than this, in nanoseconds of the epoch.

    Returns:
        Its path; None if there is no checkpoint.

    Raises:
        UsageError: If there are some, and all are damaged.
    """
    last = Path(work_dir, 'last_checkpoint')
    named = last.read_text(errors='replace') if last.is_file() else ''
    found = {
        path.resolve()
        for folder in (work_dir, Path(named).parent if named else work_dir)
        for path in Path(folder).glob('*.pth')
        if re.fullmatch(r'(epoch|iter)_\d+\.pth', path.name)
        or path == Path(named)
    }
    times = {path: path.stat().st_mtime_ns for path in found}
    times = {path: time for path, time in times.items() if time >= since}
    for path in sorted(times, key=times.__getitem__, reverse=True):
        wrong = damage(path)
        if wrong is None:
            return str(path)
        if os.environ.get('RANK', '0') == '0':
            print(
                f'warning: {path} is damaged ({wrong}): the one before it '
                'is used',
                file=sys.stderr,
            )
    if times:
        raise UsageError(
            f'{work_dir}: no checkpoint is whole ({len(times)} are damaged); '
            '--overwrite begins anew'
        )
    return None


@register_backend('whole')
class WholeFileBackend(LocalBackend):
    """The file system, with files that are never half-written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: What it holds.
            filepath: The file.

        Raises:
            UsageError: If it cannot be written.
        """
        atomic_write(filepath, obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, but an old checkpoint goes when the new one is safe.

    mmengine deletes first, both to keep ``max_keep_ckpts`` files and when a
    checkpoint is the best so far, and writes over the file in place. Keep two
    at least: one alone is no help when it turns out to be damaged.

    Args:
        backend_args: As in mmengine; None writes whole files.
        **kwargs: As in mmengine.
    """

    def __init__(
        self, backend_args: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        local = '://' not in str(kwargs.get('out_dir') or '')
        if backend_args is None and local:
            backend_args = {'backend': 'whole'}
        super().__init__(backend_args=backend_args, **kwargs)

    def before_train(self, runner: Runner) -> None:
        """Clear away what an interrupted write left.

        Args:
            runner: Of the run.
        """
        super().before_train(runner)
        if is_main_process():
            for part in Path(self.out_dir).glob(f'*.pth{PART}'):
                part.unlink()

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        name = self.filename_tmpl.format
        old = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                old = self.keep_ckpt_ids.popleft()
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info(
                'keep_ckpt_ids', list(self.keep_ckpt_ids)
            )
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name(step))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name(step),
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        last = Path(runner.work_dir, 'last_checkpoint')
        atomic_write(last, self.last_ckpt)
        if old is not None:
            self._remove(self.file_backend.join_path(self.out_dir, name(old)))

    def _save_best_checkpoint(
        self, runner: Runner, metrics: dict[str, Any]
    ) -> None:
        if not self.save_best:
            return
        paths = self.__dict__
        keys = ['best_ckpt_path']
        if len(self.key_indicators) > 1:
            paths, keys = self.best_ckpt_path_dict, self.key_indicators
        # mmengine removes first, but not what it does not see.
        old = {key: paths[key] for key in keys}
        paths.update(dict.fromkeys(keys))
        super()._save_best_checkpoint(runner, metrics)
        for key, path in old.items():
            if paths[key] is None:
                paths[key] = path
            elif path not in (None, paths[key]) and is_main_process():
                self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # of sharded training
            self.file_backend.rmtree(path)
