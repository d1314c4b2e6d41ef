# SPDX-License-Identifier: Apache-2.0
"""Train a detector: what tools/train.py does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device

from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.launch import build_runner, leave, num_restarts
from lors_det.errors import UsageError
from lors_det.files import check_file
from lors_det.hooks.checkpoint import (
    checkpoint_folder,
    latest_checkpoint,
    set_aside_checkpoints,
)
from lors_det.precision import choose_type, remark
from lors_det.safe_load import install


def train(
    cfg: Config, args: argparse.Namespace, errors: OneLineErrors
) -> None:
    """Train as the command line says.

    Args:
        cfg: What `configure` made of the arguments.
        args: Parsed arguments of tools/train.py.
        errors: What turns errors into lines.

    Raises:
        UsageError: If a setting is wrong, a file is missing, or something
            would be overwritten.
    """
    install(args.trust)
    _change_by_flags(cfg, args)
    resume_from = _resume_from(args, cfg)
    if resume_from:
        cfg.resume, cfg.load_from = True, resume_from
    if cfg.get('load_from'):
        check_file(cfg.load_from, '--resume' if resume_from else 'load_from')
    runner = build_runner(cfg, errors)
    if not resume_from and os.environ.get('RANK', '0') == '0':
        # Only now: a wrong setting must not touch an earlier run.
        set_aside_checkpoints(
            checkpoint_folder(cfg), needed=cfg.get('load_from')
        )
    runner.train()
    del runner
    leave()


def _change_by_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Change the config by ``--amp`` and ``--auto-scale-lr``."""
    if args.amp:
        device = get_device()
        dtype = choose_type(device) if args.amp == 'best' else args.amp
        remark(dtype, device)
        name = 'CpuAmpOptimWrapper' if device == 'cpu' else 'AmpOptimWrapper'
        cfg.optim_wrapper.update(type=name, dtype=dtype)
        # bfloat16 has float32's range: no loss scaling.
        scale = 'dynamic' if dtype == 'float16' else 1.0
        cfg.optim_wrapper.setdefault('loss_scale', scale)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError(
                '--auto-scale-lr: the config has no '
                'auto_scale_lr.base_batch_size'
            )
        cfg.auto_scale_lr.enable = True


def _resume_from(args: argparse.Namespace, cfg: Config) -> str | None:
    """Return the checkpoint to resume from, if any."""
    folder = checkpoint_folder(cfg)
    launched = Path(cfg.work_dir, '.launched')
    if num_restarts() == 0 and os.environ['RANK'] == '0':
        launched.parent.mkdir(parents=True, exist_ok=True)
        launched.touch()
    elif num_restarts() > 0 and launched.is_file():
        # A worker died: resume from what this launch has written, or do once
        # more as the command says.
        since = launched.stat().st_mtime_ns
        found = latest_checkpoint(folder, args.trust, since)
        if found:
            return found
    if args.resume and args.resume != 'auto':
        return str(args.resume)
    found = latest_checkpoint(folder, args.trust) if args.resume else None
    if not found and not args.overwrite:
        earlier = sorted(Path(folder).glob('*.pth'))
        if earlier:
            raise UsageError(
                f'{folder} holds {len(earlier)} checkpoints of an earlier run '
                f'({earlier[-1].name}): --resume continues it, --work-dir '
                'names another folder, --overwrite writes over it'
            )
    return found
