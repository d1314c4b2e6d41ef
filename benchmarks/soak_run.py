# SPDX-License-Identifier: Apache-2.0
"""Trainings that can be broken: small, and forked from this process."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401  # by mmengine, when a run begins
from mmengine.runner import runner as mmengine_runner
from yapf.yapflib import yapf_api

from lors_det.cli.launch import train
from lors_det.errors import UsageError

ROOT = Path(__file__).parents[1]
# A detector that takes a step in a fraction of a second, on images that are
# flipped and resized at random.
SMALL = {
    'model.num_queries': 8,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 32,
    'model.decoder.embed_dims': 32,
    'model.decoder.feedforward_channels': 16,
    'model.decoder.in_points': 4,
    'model.decoder.out_points': 4,
    'model.decoder.stacks.mixing_kernels.rank': 2,
    'train_dataloader.batch_size': 2,
    'train_dataloader.dataset.pipeline': [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True},
        {
            'type': 'RandomChoiceResize',
            'scales': [(64, 64), (96, 96)],
            'keep_ratio': True,
        },
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PackDetInputs'},
    ],
    'log_processor.window_size': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.interval': 3,
    'custom_hooks': [{'type': 'EMAHook'}],
    'val_cfg': None,
    'val_dataloader': None,
    'val_evaluator': None,
}
# Both loops; with 19 images, 10 steps of one process are an epoch.
LOOPS: dict[str, dict[str, Any]] = {
    'iterations': {
        'train_cfg.max_iters': 40,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    },
    'epochs': {
        'train_cfg': {
            '_delete_': True,
            'type': 'EpochBasedTrainLoop',
            'max_epochs': 4,
        },
        'log_processor.by_epoch': True,
        'train_dataloader.num_workers': 2,
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_dataloader.batch_sampler': {
            '_delete_': True,
            'type': 'AspectRatioBatchSampler',
        },
    },
}
SHORT = {
    'iterations': {'train_cfg.max_iters': 12},
    'epochs': {'train_cfg.max_epochs': 2},
}


def prepare() -> None:
    """Make ready to fork; leave out what takes longer than the training.

    That is to describe the machine at each start, and to format the text of
    the config for each checkpoint.
    """
    os.chdir(ROOT)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or each process goes through all that was imported
    vars(mmengine_runner)['collect_env'] = dict
    vars(yapf_api)['FormatCode'] = lambda text, **_: (text, True)


class Run:
    """A training, in processes that can be killed.

    Args:
        config: Its config file.
        work_dir: Its folder.
        processes: How many train it.
    """

    def __init__(self, config: Path, work_dir: Path, processes: int) -> None:
        self.config = config
        self.work_dir = work_dir
        self.processes = processes
        self.pids: list[int] = []
        work_dir.mkdir(parents=True, exist_ok=True)

    def copy(self, work_dir: Path) -> Run:
        """The same, stopped, in another folder."""
        shutil.copytree(self.work_dir, work_dir, dirs_exist_ok=True)
        for path in work_dir.glob('*.pth'):  # which was the last?
            shutil.copystat(self.work_dir / path.name, path)
        (work_dir / 'last_checkpoint').unlink()
        return Run(self.config, work_dir, self.processes)

    def start(self, max_bytes: int | None = None) -> None:
        """Start or resume it; a file may have ``max_bytes`` at most."""
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.pids = []
        for rank in range(self.processes):
            env = {'RANK': rank, 'WORLD_SIZE': self.processes}
            env |= {'LOCAL_RANK': rank, 'MASTER_PORT': port}
            self.pids.append(fork(partial(self.work, env, max_bytes)))

    def work(self, env: dict[str, int], max_bytes: int | None) -> None:
        """What each process does."""
        if self.processes > 1:
            os.environ['MASTER_ADDR'] = '127.0.0.1'
            os.environ.update({key: str(env[key]) for key in env})
        if max_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        self.train('auto')

    def train(self, resume: str | None) -> None:
        """Call what tools/train.py calls."""
        with (self.work_dir / 'output').open('a') as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        arguments = argparse.Namespace(
            config=str(self.config), work_dir=str(self.work_dir),
            overwrite=False, cfg_options=None, trust=False, resume=resume,
            launcher='pytorch' if self.processes > 1 else 'none', amp=None,
            auto_scale_lr=False,
        )  # fmt: skip
        train(arguments)

    def wait(self) -> bool:
        """Wait for its end; whether it was a good one."""
        return all([os.waitpid(pid, 0)[1] == 0 for pid in self.pids])

    def kill(self, after: int, delay: float) -> bool:
        """Kill all processes with SIGKILL.

        Args:
            after: So many further iterations must be in the log.
            delay: Seconds from there.

        Returns:
            Whether it was still running.
        """
        self.reach(len(self.losses()) + after)
        time.sleep(delay)
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        ends = [os.waitpid(pid, 0)[1] for pid in self.pids]
        return any(end == signal.SIGKILL for end in ends)

    def reach(self, iterations: int) -> None:
        """Wait until so many iterations are in the log, or it ended."""
        while len(self.losses()) < iterations and self.is_running():
            time.sleep(0.02)

    def is_running(self) -> bool:
        """Whether its first process runs."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pids[0], options) is None

    def losses(self) -> list[tuple[int, str]]:
        """Iteration and losses of all that was done, also what was redone."""
        done = []
        for log in sorted(self.work_dir.glob('*/vis_data/scalars.json')):
            for line in log.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # cut off
                    entry = json.loads(line)
                    losses = {k: entry[k] for k in entry if 'loss' in k}
                    done.append((entry['step'], repr(losses)))
        return done

    def output(self) -> str:
        """What it has printed."""
        return (self.work_dir / 'output').read_text()


def fork(work: Callable[[], None]) -> int:
    """Call a function in a new process; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except UsageError as error:
        print(f'error: {error}', file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)
