# SPDX-License-Identifier: Apache-2.0
"""Time of a training step of two configs, measured in turns.

``python -m lors_det.vit.step_time CONFIG CONFIG``: both models see the same
random batch, a step of one follows a step of the other, so whatever else the
machine does slows both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

import lors_det.vit.model  # noqa: F401  # registers the classifier


def training_step(config: Config, device: str) -> Callable[[], None]:
    """Prepare a training step on a random batch.

    Args:
        config: Whole config of a classifier.
        device: Where to train.

    Returns:
        Does one step, with all of its optimizer.
    """
    settings = config.model
    model = MODELS.build(settings).to(device).train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    number = config.train_dataloader.batch_size
    side, channels = settings.img_size, settings.in_channels
    batch = {
        'inputs': torch.rand(number, channels, side, side),
        'labels': torch.randint(settings.num_classes, (number,)),
    }

    def step() -> None:
        model.train_step(batch, wrapper)
        if device.startswith('cuda'):
            torch.cuda.synchronize()

    return step


def measure(
    steps: Sequence[Callable[[], None]], rounds: int, warm_up: int = 5
) -> list[float]:
    """Median time of every step, taken in turns.

    Args:
        steps: What to measure.
        rounds: How often each is measured.
        warm_up: Rounds before, which do not count.

    Returns:
        Seconds.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(warm_up + rounds):
        for step, taken in zip(steps, seconds, strict=True):
            begin = time.perf_counter()
            step()
            if number >= warm_up:
                taken.append(time.perf_counter() - begin)
    return [median(taken) for taken in seconds]


def report(
    paths: Sequence[str], times: Sequence[float], models: Sequence[Any]
) -> str:
    """One line for each config; times relative to the first.

    Args:
        paths: The configs.
        times: Seconds of a step.
        models: ``model`` of every config.
    """
    lines = []
    for path, seconds, settings in zip(paths, times, models, strict=True):
        with torch.device('meta'):
            model = MODELS.build(settings)
        encoder = sum(p.numel() for p in model.encoder.parameters())
        total = sum(p.numel() for p in model.parameters())
        lines.append(
            f'{path}: {total:,} parameters, {encoder:,} in the encoder; '
            f'{1000 * seconds:.1f} ms per step, '
            f'{seconds / times[0]:.2f} of the first'
        )
    return '\n'.join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and print.

    Args:
        arguments: Those of the process if None.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--rounds', type=int, default=100)
    parser.add_argument('--device', default='cpu')
    args = parser.parse_args(arguments)
    # mmengine tells the settings of every parameter to the last logger.
    MMLogger.get_instance('step_time', log_level='WARNING')
    configs = [Config.fromfile(path) for path in args.configs]
    steps = [training_step(config, args.device) for config in configs]
    times = measure(steps, args.rounds)
    print(report(args.configs, times, [config.model for config in configs]))


if __name__ == '__main__':
    main()
