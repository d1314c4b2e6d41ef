# SPDX-License-Identifier: Apache-2.0
"""From a config to a runner, for training and testing."""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.console import ConsoleRunner
from lors_det.errors import UsageError
from lors_det.files import import_modules


def build_runner(cfg: Config, errors: OneLineErrors) -> Runner:
    """Build mmengine's runner; without a GPU, processes talk over gloo.

    Args:
        cfg: The config of the run.
        errors: Learns when the first batch is done.

    Returns:
        The runner; it shows its log when all that it needs is built.

    Raises:
        UsageError: If the launcher needs a GPU.
    """
    import_modules(cfg)
    has_gpu = torch.cuda.is_available()
    if cfg.launcher != 'none' and not has_gpu:
        if cfg.launcher != 'pytorch':
            raise UsageError(
                f'--launcher {cfg.launcher} needs GPUs, and torch finds none'
            )
        # mmengine's own start-up asks for a CUDA device.
        _join_processes('gloo')
        cfg.model_wrapper_cfg = _wrapper_on_cpu(cfg)
    elif cfg.launcher == 'pytorch' and num_restarts() > 0:
        torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
        _join_processes(cfg.env_cfg.dist_cfg.backend)
    runner = ConsoleRunner.from_cfg(cfg)
    runner.register_hook(_FirstBatch(errors), priority='LOWEST')
    return runner


def num_restarts() -> int:
    """Return how often torchrun restarted this process; -1 without it."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', -1))


def leave() -> None:
    """Leave the process group together, and end its threads.

    The group's threads end with its last reference, and the wrapped model,
    part of a cycle, holds one. A thread that is left over aborts the process
    if it frees a tensor while the interpreter shuts down.
    """
    if dist.is_initialized():
        dist.barrier()
        gc.collect()
        dist.destroy_process_group()


def _wrapper_on_cpu(cfg: Config) -> ConfigDict:
    """Return mmengine's settings for distributed models, without a device."""
    unused = cfg.get('find_unused_parameters', False)
    default = {'broadcast_buffers': False, 'find_unused_parameters': unused}
    wrapper = ConfigDict(cfg.get('model_wrapper_cfg') or default)
    wrapper.setdefault('type', 'MMDistributedDataParallel')
    if str(wrapper.type).endswith('DistributedDataParallel'):
        wrapper.setdefault('device_ids', None)
    return wrapper


def _join_processes(backend: str) -> None:
    """Join the processes that torchrun started.

    Its store outlives a restart, with the addresses of processes that died,
    and a process that reads those waits for them: each start gets names of
    its own.
    """
    store, rank, size = next(rendezvous('env://'))
    dist.init_process_group(
        backend,
        store=PrefixStore(f'start{num_restarts()}', store),
        rank=rank,
        world_size=size,
    )


class _FirstBatch(Hook):
    """Lets the console begin, and tells when it has proved to work.

    That is when a second iteration begins, and for validation when it has
    ended once: what comes after a batch may fail by a wrong setting too.

    Args:
        errors: What is told.
    """

    def __init__(self, errors: OneLineErrors) -> None:
        self.errors = errors
        self.iterations = 0
        self.has_validated = False

    def before_train(self, runner: ConsoleRunner) -> None:
        runner.begin(in_training=True)

    def before_test(self, runner: ConsoleRunner) -> None:
        runner.begin(in_training=False)

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        self.errors.first_batch_done = self.iterations > 0
        self.iterations += 1

    before_test_iter = before_train_iter

    def before_val_epoch(self, runner: ConsoleRunner) -> None:
        self.errors.loop = 'val'
        self.errors.first_batch_done = self.has_validated

    def after_val_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.errors.loop = 'train'
        self.errors.first_batch_done = self.has_validated = True
