# SPDX-License-Identifier: Apache-2.0
"""Write checkpoints atomically, find the latest, refuse those that don't fit.

mmengine writes over a file in place, deletes an old checkpoint before the new
one is written, resumes from a cut-off file, and runs a model with random
weights where a checkpoint lacks them.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from lors_det.errors import UsageError
from lors_det.files import PART, atomic_write, find_damage
from lors_det.safe_load import load_checkpoint


def checkpoint_folder(cfg: Mapping[str, Any]) -> str:
    """Return the folder that a run writes its checkpoints to.

    Args:
        cfg: The config, with ``work_dir``.
    """
    work_dir = str(cfg['work_dir'])
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not hook.get('out_dir'):
        return work_dir
    return str(Path(hook['out_dir'], Path(work_dir).name))  # as mmengine


def latest_checkpoint(
    folder: str, trust: bool = False, since: int = 0
) -> str | None:
    """Find the undamaged checkpoint of the highest iteration.

    Damaged checkpoints are reported, a line each.

    Args:
        folder: Folder of the run's checkpoints.
        trust: Whether files may run code while they are loaded.
        since: Leave out files older than this, in nanoseconds of the epoch.

    Returns:
        Its path; None if there is no checkpoint.

    Raises:
        UsageError: If all checkpoints are damaged.
    """
    found = [
        (iteration, path)
        for iteration, path in _checkpoints(folder, trust)
        if path.stat().st_mtime_ns >= since
    ]
    for iteration, path in sorted(found, reverse=True):
        reason = find_damage(path)
        if not reason and iteration < math.inf:
            return str(path)
        if os.environ.get('RANK', '0') == '0':
            print(
                f'warning: {path} is damaged '
                f'({reason or "torch does not read it"}): the one before it '
                'is used',
                file=sys.stderr,
            )
    if found:
        raise UsageError(
            f'{folder}: no checkpoint is whole ({len(found)} are damaged); '
            '--overwrite starts a new run'
        )
    return None


def set_aside_checkpoints(
    folder: str, after: int = -1, needed: str | None = None
) -> None:
    """Rename checkpoints of another run to ``.old``: none resumes from them.

    Earlier files with these names are replaced.

    Args:
        folder: Folder of the run's checkpoints.
        after: Iteration that the run starts from: those of a higher one are
            renamed; -1 for all, also the best one and damaged ones.
        needed: File that the run starts from, its ``load_from``.

    Raises:
        UsageError: If ``needed`` would be renamed.
    """
    paths = [
        path
        for iteration, path in _checkpoints(folder)
        if after < iteration and (after < 0 or iteration < math.inf)
    ]
    if after < 0:
        paths += Path(folder).glob('best_*.pth')
    if needed and Path(needed).resolve() in (p.resolve() for p in paths):
        raise UsageError(
            f'--overwrite: load_from={needed} is a checkpoint that would '
            'be overwritten: move it elsewhere, or name another --work-dir'
        )
    for path in paths:
        path.replace(f'{path}.old')


def _checkpoints(
    folder: str, trust: bool = False
) -> Iterator[tuple[float, Path]]:
    """Yield iteration and path of all checkpoints but the best one.

    The iteration is infinite if torch does not read the file.
    """
    for path in Path(folder).glob('*.pth'):
        if path.name.startswith('best_') or not path.is_file():
            continue
        try:
            found = load_checkpoint(path, trust=trust, verify=False)
        except UsageError:
            yield math.inf, path
            continue
        meta = found.get('meta')
        iteration = meta.get('iter') if isinstance(meta, dict) else None
        if isinstance(iteration, int):  # not only weights
            yield iteration, path


def load_strictly(
    model: nn.Module, checkpoint: Mapping[str, Any], name: str, purpose: str
) -> None:
    """Load weights, and refuse a checkpoint that does not fit the model.

    Args:
        model: Receives the weights.
        checkpoint: Loaded from a file.
        name: The file, for messages.
        purpose: ``resume``, ``test`` or ``load_from``; with the last, weights
            that are missing or have another shape are left as initialised,
            with a warning.

    Raises:
        UsageError: If no weight fits, if a weight is missing or has another
            shape, or if a run is to be resumed and its state is missing.
    """
    found = checkpoint.get('state_dict', checkpoint)
    state = {
        key.removeprefix('module.'): value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, Tensor)
    }
    expected = model.state_dict()
    try:
        model.load_state_dict(state, strict=False)
    except ValueError as error:  # of a stack of another depth or rank
        raise UsageError(f'{name}: {error}') from None
    except RuntimeError:  # some have another shape; the others are loaded
        state = {
            key: value
            for key, value in state.items()
            if key not in expected or value.shape == expected[key].shape
        }
    missing = [key for key in expected if key not in state]
    unused = [key for key in state if key not in expected]
    if not expected.keys() & state.keys():
        raise UsageError(
            f'{name}: none of its {len(state)} weights fits the model, which '
            f'has {_first(expected)}: it is of another model'
        )
    # Batch norms of old releases have no counter.
    missing = [key for key in missing if 'num_batches_tracked' not in key]
    lacks = (
        f'{name} lacks weights of the model, or has them in another shape: '
        f'{_first(missing)}'
    )
    if missing and purpose != 'load_from':
        raise UsageError(lacks)
    if purpose == 'resume' and not _is_resumable(checkpoint.get('meta')):
        raise UsageError(
            f'--resume: {name} holds weights, but not the state of a run; '
            '--cfg-options load_from=CHECKPOINT starts from it'
        )
    if missing:
        _warn(f'{lacks}; they stay as they were initialised')
    if unused:
        _warn(f'{name}: not used: {_first(unused)}')
    bad = [key for key, value in state.items() if not value.isfinite().all()]
    if bad:
        _warn(f'{name}: weights that are not finite: {_first(bad)}')


_warn = partial(print_log, logger='current', level=logging.WARNING)


def _first(names: Any) -> str:
    """Return a number of names, and the first three."""
    names = list(names)
    more = ', ...' if len(names) > 3 else ''
    return f'{len(names)} ({", ".join(names[:3])}{more})'


def _is_resumable(meta: Any) -> bool:
    return isinstance(meta, dict) and all(
        isinstance(meta.get(key), int) and meta[key] >= 0
        for key in ('epoch', 'iter')
    )


@register_backend('atomic')
class AtomicBackend(LocalBackend):
    """The file system, with files that are never half-written."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: Its content.
            filepath: The file.

        Raises:
            UsageError: If it cannot be written.
        """
        atomic_write(filepath, obj)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, which writes files atomically and checks what it loads.

    An old checkpoint is deleted when the new one is on the disk; keep two at
    least (``max_keep_ckpts``), in case one is damaged. A checkpoint that is
    loaded has to fit the model (`load_strictly`).

    Args:
        backend_args: As in mmengine; None for atomic writes.
        **kwargs: As in mmengine.
    """

    def __init__(
        self, backend_args: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        local = '://' not in str(kwargs.get('out_dir') or '')
        if backend_args is None and local:
            backend_args = {'backend': 'atomic'}
        super().__init__(backend_args=backend_args, **kwargs)

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a checkpoint that does not fit the model."""
        # mmengine has no public name for its purpose.
        is_training = isinstance(runner.optim_wrapper, OptimWrapper)
        purpose = 'load_from' if is_training else 'test'
        purpose = 'resume' if runner._resume else purpose
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        name = runner._load_from or 'the checkpoint'
        load_strictly(model, checkpoint, name, purpose)
        if purpose == 'resume' and is_training:
            optimizer = runner.optim_wrapper.optimizer
            groups = checkpoint.get('optimizer', {}).get('param_groups')
            missing = sorted({*optimizer.defaults} - {*(groups or [{}])[0]})
            if missing:
                raise UsageError(
                    f'--resume: {name} is of a run with another optimiser: it '
                    f'has no {_first(missing)} for {type(optimizer).__name__}'
                )

    def before_train(self, runner: Runner) -> None:
        """Remove interrupted writes, rename checkpoints of another run."""
        super().before_train(runner)
        if is_main_process() and '://' not in self.out_dir:
            for part in Path(self.out_dir).glob(f'*.pth{PART}'):
                part.unlink()
            set_aside_checkpoints(self.out_dir, runner.iter)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict[str, Any]
    ) -> None:
        with self._delete_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(
        self, runner: Runner, metrics: dict[str, Any]
    ) -> None:
        with self._delete_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _delete_last(self) -> Iterator[None]:
        """Put off deletions by mmengine until its writes have succeeded."""
        backend, outdated = self.file_backend, list[str]()
        remove, backend.remove = backend.remove, outdated.append
        try:
            yield
        finally:
            backend.remove = remove
        kept = [self.last_ckpt, getattr(self, 'best_ckpt_path', None)]
        kept += getattr(self, 'best_ckpt_path_dict', {}).values()
        for path in outdated:
            if path not in kept:  # nor written anew under its old name
                remove(path)
