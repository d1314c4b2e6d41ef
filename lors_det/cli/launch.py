# SPDX-License-Identifier: Apache-2.0
"""Behind tools/train.py and tools/test.py: from arguments to a runner."""

from __future__ import annotations

import argparse
import errno
import gc
import os
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.distributed as dist
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import Runner
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lors_det.cli.checks import check_dataset, check_work_dir
from lors_det.errors import UsageError
from lors_det.files import check_file, check_output
from lors_det.hooks.checkpoint import (
    checkpoint_folder,
    latest_checkpoint,
    set_aside_checkpoints,
)
from lors_det.safe_load import install


def common_parser(description: str) -> argparse.ArgumentParser:
    """Arguments that training and testing share.

    Args:
        description: First line of the help text.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (work_dirs/CONFIG if not given)',
    )
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='write over what an earlier run left in the output folders',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. '
        'model.decoder.num_stages=3 or key="[a,b]"',
    )
    parser.add_argument(
        '--trust',
        action='store_true',
        help='let checkpoints run code while they are loaded, as a pickle can',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    return parser


def train(args: argparse.Namespace) -> None:
    """Train as the command line says.

    Args:
        args: Parsed arguments of tools/train.py.

    Raises:
        UsageError: If a file is missing, weights cannot be downloaded, or
            something would be overwritten.
    """
    cfg = _configure(args)
    if args.amp:
        if not torch.cuda.is_available():
            raise UsageError('--amp needs a GPU, and torch finds none')
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=args.amp)
        # bfloat16 has float32's range: no loss scaling.
        scale = 'dynamic' if args.amp == 'float16' else 1.0
        cfg.optim_wrapper.setdefault('loss_scale', scale)
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError(
                '--auto-scale-lr: the config has no '
                'auto_scale_lr.base_batch_size'
            )
        cfg.auto_scale_lr.enable = True
    resume_from = _resume_from(args, cfg)
    if resume_from:
        cfg.resume, cfg.load_from = True, resume_from
    for loop in ('train', 'val'):
        check_dataset(cfg, loop)
    if cfg.get('load_from'):
        what = '--resume' if resume_from else 'load_from'
        check_file(cfg.load_from, what)
    if not resume_from and os.environ.get('RANK', '0') == '0':
        set_aside_checkpoints(
            checkpoint_folder(cfg), needed=cfg.get('load_from')
        )
    try:
        runner = _build_runner(cfg)
        runner.train()
    except URLError as error:
        raise UsageError(
            f'cannot download pretrained weights ({error.reason}): '
            f'{_pretrained(cfg)}; where there is no network, fetch the file '
            'elsewhere and give its path with --cfg-options '
            'model.backbone.init_cfg.checkpoint=PATH, or train from random '
            'weights with model.backbone.init_cfg=None'
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f'{cfg.work_dir}: {error.strerror}; the checkpoints in it are '
            'whole: make room, --resume goes on from them'
        ) from None
    except KeyError as error:
        if resume_from and error.args[0] in ('epoch', 'iter'):
            raise UsageError(
                f'--resume: {cfg.load_from} holds weights, but not the state '
                'of a run; --cfg-options load_from=CHECKPOINT starts from it'
            ) from error
        raise
    del runner
    _leave()


def test(args: argparse.Namespace) -> None:
    """Test as the command line says.

    Args:
        args: Parsed arguments of tools/test.py.

    Raises:
        UsageError: If a file is missing or would be overwritten.
    """
    cfg = _configure(args)
    check_file(args.checkpoint, 'CHECKPOINT')
    check_dataset(cfg, 'test')
    for option, path in (('--out', args.out), ('--show-dir', args.show_dir)):
        if path and not args.overwrite:
            check_output(path, option)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out {args.out}: expected a name ending in .pkl')
    cfg.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in cfg.default_hooks:
            raise UsageError('--show-dir: the model of this config draws none')
        # An absolute path, or the hook puts it below the run's time stamp.
        cfg.default_hooks.visualization.update(
            draw=True, test_out_dir=str(Path(args.show_dir).resolve())
        )
    runner = _build_runner(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(
            DumpDetResults(out_file_path=args.out)
        )
    runner.test()
    del runner
    _leave()


def load_config(path: str) -> Config:
    """Read a config file.

    Args:
        path: The file.

    Raises:
        UsageError: If it is not there, one of its bases is not, or it is no
            Python.
    """
    if not Path(path).is_file():
        raise UsageError(f'CONFIG: {path} does not exist')
    try:
        return Config.fromfile(path)
    except (FileNotFoundError, SyntaxError) as error:
        raise UsageError(f'CONFIG: {path}: {error}') from error


def _configure(args: argparse.Namespace) -> Config:
    """Read the config file and what the command line changes of it."""
    install(args.trust)
    cfg = load_config(args.config)
    if args.cfg_options:
        try:
            cfg.merge_from_dict(args.cfg_options)
        except (KeyError, TypeError) as error:
            raise UsageError(f'--cfg-options: {error}') from error
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    cfg.launcher = args.launcher
    if 'compile' in cfg and cfg.model.get('type') == 'AdaMixer':
        # mmengine would compile the training step, and matching with it.
        cfg.model.compile = cfg.pop('compile')
    return cfg


def _restarts() -> int:
    """How often torchrun has restarted this process; -1 without torchrun."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', -1))


def _resume_from(args: argparse.Namespace, cfg: Config) -> str | None:
    """Return the checkpoint to resume from, if any."""
    folder = checkpoint_folder(cfg)
    launched = Path(cfg.work_dir, '.launched')
    if _restarts() == 0 and os.environ['RANK'] == '0':
        launched.parent.mkdir(parents=True, exist_ok=True)
        launched.touch()
    elif _restarts() > 0 and launched.is_file():
        # A worker died: resume from what this launch has written, or do once
        # more as the command says.
        since = launched.stat().st_mtime_ns
        found = latest_checkpoint(folder, args.trust, since)
        if found:
            return found
    if args.resume and args.resume != 'auto':
        return args.resume
    found = latest_checkpoint(folder, args.trust) if args.resume else None
    if not found and not args.overwrite:
        check_work_dir(folder)
    return found


def _build_runner(cfg: Config) -> Runner:
    """Build mmengine's runner; without a GPU, processes talk over gloo."""
    has_gpu = torch.cuda.is_available()
    if cfg.launcher != 'none' and not has_gpu:
        if cfg.launcher != 'pytorch':
            raise UsageError(
                f'--launcher {cfg.launcher} needs GPUs, and torch finds none'
            )
        # mmengine's own start-up asks for a CUDA device.
        _join_processes('gloo')
        if not cfg.get('model_wrapper_cfg'):
            cfg.model_wrapper_cfg = ConfigDict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                device_ids=None,
            )
    elif cfg.launcher == 'pytorch' and _restarts() > 0:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        _join_processes(cfg.env_cfg.dist_cfg.backend)
    return _Runner.from_cfg(cfg)


class _Runner(Runner):
    """mmengine's runner; a setting that the model refuses is the user's."""

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """Build the model, or say in one line which setting is wrong."""
        try:
            return super().build_model(model)
        except (TypeError, ValueError) as error:
            raise UsageError(f'CONFIG: model: {error}') from error


def _join_processes(backend: str) -> None:
    """Join the processes that torchrun started.

    Its store outlives a restart, with the addresses of processes that died,
    and who reads those waits for them: each start gets names of its own.
    """
    store, rank, size = next(rendezvous('env://'))
    dist.init_process_group(
        backend,
        store=PrefixStore(f'start{_restarts()}', store),
        rank=rank,
        world_size=size,
    )


def _leave() -> None:
    """Leave the process group together, and end its threads.

    The group's threads end with its last reference, and the wrapped model,
    part of a cycle, holds one. A thread that is left over aborts the process
    if it frees a tensor while the interpreter shuts down.
    """
    if dist.is_initialized():
        dist.barrier()
        gc.collect()
        dist.destroy_process_group()


def _pretrained(cfg: Config) -> str:
    """The weights that the config wants, for the error message."""
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or {}
    checkpoint = init_cfg.get('checkpoint', 'unknown')
    return f'model.backbone.init_cfg.checkpoint={checkpoint!r}'
