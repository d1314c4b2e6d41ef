# SPDX-License-Identifier: Apache-2.0
"""Measure what a user waits for: python -m benchmarks.end_to_end [--help].

The demo's training and testing against the steps of its model alone, with
mmdet's Sparse R-CNN on the same data as a yardstick; and how long the commands
take to begin.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.runner import Runner

import lors_det.adamixer  # noqa: F401  # registers the detector's parts
from benchmarks.document import machine, publish
from lors_det.analysis.tables import markdown_table
from lors_det.analysis.timing import Spread, ratio
from lors_det.cli.console import ConsoleRunner

DEMO = 'configs/bccd/lors-adamixer_mobilenetv2_bccd.py'
WEIGHTS = 'demo/checkpoints/lors-adamixer_mobilenetv2_bccd.pth'
WRONG = 'training, a wrong setting'  # must fail; all others must not
SPARSE_RCNN = 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py'
IMAGE = 'demo/bccd/images/BloodImage_00007.jpg'
DOCUMENT = Path('docs/performance.md')
STEPS = 18  # of a round: one pass over the test images


class AgainstTheModel(Hook):
    """Time a loop; after every few steps, the same steps of the model alone.

    Args:
        steps: How many steps are timed at once.
    """

    priority = 'LOWEST'

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.batches: list[Any] = []
        self.loop: list[float] = []
        self.alone: list[float] = []
        self.begin = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin a round."""
        self.begin = time.perf_counter()

    before_test_epoch = before_train_epoch

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any
    ) -> None:
        """Compare with training steps."""
        self._compare(
            data_batch,
            lambda x: runner.model.train_step(x, runner.optim_wrapper),
        )

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Any
    ) -> None:
        """Compare with predicting."""
        self._compare(data_batch, runner.model.test_step)

    def _compare(self, batch: Any, step: Callable[[Any], object]) -> None:
        self.batches.append(batch)
        if len(self.batches) < self.steps:
            return
        self.loop.append(time.perf_counter() - self.begin)
        begin = time.perf_counter()
        for each in self.batches:
            step(each)
        self.alone.append(time.perf_counter() - begin)
        self.batches = []
        self.begin = time.perf_counter()


def throughput(model: str, mode: str, rounds: int) -> list[str]:
    """Measure a loop of the demo, and the same steps of the model alone.

    Args:
        model: ``demo``, or ``Sparse R-CNN`` in its place.
        mode: ``train`` or ``test``.
        rounds: How many rounds count; one more comes before them.

    Returns:
        Time of the loop over that of the model alone, and images per second
        of both.
    """
    cfg = Config.fromfile(DEMO)
    if model != 'demo':  # with random weights, as the demo
        cfg.model = get_config(SPARSE_RCNN).model
        cfg.model.backbone.init_cfg = None
        for head in cfg.model.roi_head.bbox_head:
            head.num_classes = 3
    cfg.train_cfg.update(max_iters=STEPS * (rounds + 1), val_interval=10**6)
    with tempfile.TemporaryDirectory() as cfg.work_dir:
        cfg.visualizer.name = cfg.work_dir  # one visualizer of each name
        runner = ConsoleRunner.from_cfg(cfg)
        hook = AgainstTheModel(STEPS)
        runner.register_hook(hook)
        for _ in range(1 if mode == 'train' else rounds + 1):
            getattr(runner, mode)()
    loop, alone = hook.loop[1:], hook.alone[1:]
    images = STEPS * cfg[f'{mode}_dataloader'].batch_size
    rates = (
        Spread.of(images / s for s in seconds).text(1)
        for seconds in (loop, alone)
    )
    return [ratio(loop, alone).text(), *rates]


def waiting(commands: Mapping[str, list[str]], rounds: int) -> list[list[str]]:
    """Time commands from their start to their end.

    Args:
        commands: Arguments of Python, by what they do.
        rounds: How often each runs; ratios are against the first.

    Returns:
        Rows of a table.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, arguments in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True
            )
            seconds[name].append(time.perf_counter() - begin)
            if done.returncode != (name == WRONG):
                raise SystemExit(f'error: {name}: {done.stderr[-1000:]}')
    first = next(iter(seconds.values()))
    return [
        [name, ratio(each, first).text(), Spread.of(each).text(1)]
        for name, each in seconds.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write into the document.

    Args:
        arguments: Those of the process if None.
    """
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.end_to_end', description=__doc__
    )
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--document', type=Path, default=DOCUMENT)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        to = ['--work-dir', folder, '--overwrite']
        train = ['tools/train.py', DEMO, *to, '--cfg-options']
        begins = waiting(
            {
                'import torch, mmdet': ['-c', 'import torch, mmdet.apis'],
                'any tool with --help': ['tools/train.py', '--help'],
                WRONG: [*train, 'modle.num_queries=2'],
                'training, one step': [
                    *train, 'train_cfg.max_iters=1',
                    'train_cfg.val_interval=10',
                ],
                'testing, one image': [
                    'tools/test.py', DEMO, WEIGHTS, *to, '--cfg-options',
                    'test_dataloader.dataset.indices=[0]',
                ],
                'predicting, one image': [
                    'tools/predict.py', DEMO, WEIGHTS, IMAGE, '--out',
                    f'{folder}/pictures', '--overwrite',
                ],
            },
            args.rounds,
        )  # fmt: skip
    rates = [
        [f'{model}, {mode}ing', *throughput(model, mode, args.rounds)]
        for model in ('demo', 'Sparse R-CNN')
        for mode in ('train', 'test')
    ]
    header = ['on BCCD', 'loop / model alone', 'images/s', 'alone']
    publish(
        args.document,
        'end_to_end',
        f'Measured on: {machine()}.',
        markdown_table([['command', 'time', 'seconds'], *begins]),
        markdown_table([header, *rates]),
    )


if __name__ == '__main__':
    main()
