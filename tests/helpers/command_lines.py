# SPDX-License-Identifier: Apache-2.0
"""Run tools/train.py and tools/test.py on a detector that takes seconds."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/demo/lors-adamixer_r18_coco-tiny.py'
SMALL = [
    'model.num_queries=8',
    'model.backbone.base_channels=8',
    'model.backbone.stem_channels=8',
    'model.neck.in_channels=[8,16,32,64]',
    'model.neck.out_channels=32',
    'model.decoder.embed_dims=32',
    'model.decoder.feedforward_channels=16',
    'model.decoder.in_points=4',
    'model.decoder.out_points=4',
    'model.decoder.stacks.mixing_kernels.rank=2',
    'train_dataloader.batch_size=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'train_cfg.max_iters=4',
    'train_cfg.val_interval=4',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
]
NAMES = (f'run{number}' for number in itertools.count())


def start(*command: str | Path, **env: str) -> subprocess.Popen[str]:
    """Start a command in the repository's root."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, 'PYTHON': sys.executable, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that were started in the background inherit that it is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(*command: str | Path, expect: int = 0, **env: str) -> str:
    """Run a command in the repository's root; return its output."""
    with start(*command, **env) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == expect, output[-4000:]
    return output


def run_here(*command: str | Path) -> None:
    """Run a tool in this process, to see what it raises."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, 'argv', [str(part) for part in command])
        patch.setattr(os, 'environ', dict(os.environ))
        runpy.run_path(str(command[0]), run_name='__main__')


def small_run(tool: str, *arguments: str | Path, options: tuple = ()) -> list:
    """Return the command of a small run; it can be run beside others."""
    name = next(NAMES)  # mmengine keeps loggers and visualizers by name
    return [
        f'tools/{tool}.py', CONFIG, *arguments, '--cfg-options', *SMALL,
        f'experiment_name={name}', f'visualizer.name={name}', *options,
    ]  # fmt: skip
