# SPDX-License-Identifier: Apache-2.0
"""Trainings of milliseconds, with chance in the data and in the model."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

import lors_det.hooks.checkpoint
import lors_det.hooks.exact_resume  # noqa: F401

NAMES = (f'toy{number}' for number in itertools.count())
LOOPS: dict[str, dict[str, Any]] = {
    'epochs': {
        'train_cfg': {'type': 'EpochBasedTrainLoop', 'max_epochs': 3},
        'sampler': 'DefaultSampler',
    },
    'iterations': {
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 12},
        'sampler': 'InfiniteSampler',
    },
    'iterations, finite sampler': {
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': 12},
        'sampler': 'DefaultSampler',
    },
}


class Noise(Dataset):
    """Eleven samples that use all three generators."""

    loaded = 0

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Tensor:
        self.loaded += 1
        chance = random.random() + np.random.rand()
        return torch.rand(4) + index + chance


class Toy(BaseModel):
    """A linear layer after dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, *inputs: Tensor, mode: str = 'loss') -> Any:
        return {'loss': self.layer(torch.stack(inputs)).square().mean()}


class Losses(Hook):
    """Collects iteration and loss."""

    def __init__(self) -> None:
        self.found: dict[int, float] = {}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any
    ) -> None:
        self.found[runner.iter + 1] = outputs['loss'].item()


def toy_runner(
    work_dir: Path,
    loop: str = 'epochs',
    workers: int = 0,
    batch_size: int | None = 3,
    hooks: list[Hook] | None = None,
    checkpoint: dict[str, Any] | None = None,
    **changes: Any,
) -> Runner:
    """A runner that stores a checkpoint after each iteration."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        model=Toy(),
        work_dir=str(work_dir),
        train_cfg=LOOPS[loop]['train_cfg'],
        train_dataloader=dict(
            dataset=Noise(),
            batch_size=batch_size,
            num_workers=workers,
            persistent_workers=workers > 0,
            sampler=dict(type=LOOPS[loop]['sampler'], shuffle=True),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3, momentum=0.9)),
        param_scheduler=dict(type='ExponentialLR', gamma=0.9, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(
                type='SafeCheckpointHook', by_epoch=False, interval=1
            )
            | (checkpoint or {}),
            resume=dict(type='ExactResumeHook'),
        ),
        custom_hooks=[dict(type='EMAHook'), *(hooks or [])],
        randomness=dict(seed=5),
        log_level='WARNING',
        experiment_name=next(NAMES),
    )
    return Runner(**settings | changes)


def toy_run(work_dir: Path, **settings: Any) -> tuple[Runner, dict]:
    """Train; the runner, and the loss by iteration."""
    losses = Losses()
    hooks = [losses, *settings.pop('hooks', [])]
    runner = toy_runner(work_dir, hooks=hooks, **settings)
    runner.train()
    # Let workers go now: collected as garbage, each takes five seconds.
    loop = runner.train_loop
    loop.dataloader._iterator = None
    getattr(loop, 'dataloader_iterator', loop)._iterator = None
    return runner, losses.found
