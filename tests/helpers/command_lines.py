# SPDX-License-Identifier: Apache-2.0
"""Run tools/train.py and tools/test.py on a detector that takes seconds."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from mmengine.runner import runner
from yapf.yapflib import yapf_api

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
# Importing takes longer than a small run: a tool that needs a process of its
# own is forked from one that has imported everything, and has run nothing.
FORKED = multiprocessing.get_context('forkserver')
FORKED.set_forkserver_preload(['lors_det.adamixer', 'mmdet.apis'])


def prepare_for_runs() -> None:
    """Leave out what takes longer than a small run.

    mmengine lays out each config five times, describes the machine, and
    collects garbage for each loader, among all that was imported.
    """
    # A compiler for each core is too many where only two may be used.
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '1')
    yapf_api.FormatCode = lambda text, **_: (text, True)
    runner.collect_env = dict
    gc.collect()
    gc.freeze()


def start_tool(command: Sequence[str | Path], output: Path) -> BaseProcess:
    """Start a tool in a process of its own, which writes to a file."""
    process = FORKED.Process(target=_run_tool, args=(command, output))
    process.start()
    return process


def _run_tool(command: Sequence[str | Path], output: Path) -> None:
    file = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, sys.__stdout__.fileno())
    os.dup2(file, sys.__stderr__.fileno())
    multiprocessing.set_start_method('fork', force=True)  # or mmengine warns
    # Tests that were started in the background inherit that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prepare_for_runs()
    os.chdir(ROOT)
    sys.argv = [str(part) for part in command]
    runpy.run_path(sys.argv[0], run_name='__main__')


def run_tool(*command: str | Path) -> str:
    """Run a tool in a process of its own; return its output."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, 'output')
        process = start_tool(command, output)
        process.join(240)
        text = output.read_text()
        assert process.exitcode == 0, text[-4000:]
    return text


def start(*command: str | Path, **env: str) -> subprocess.Popen[str]:
    """Start a command in the repository's root."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, 'PYTHON': sys.executable, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
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
