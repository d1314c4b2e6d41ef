# SPDX-License-Identifier: Apache-2.0
"""Skip steps whose loss or gradient is not finite, and reproduce them."""

from __future__ import annotations

import io
import logging
import math
import os
import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from lors_det.errors import UsageError
from lors_det.files import atomic_write
from lors_det.lors.config import check_at_least
from lors_det.safe_load import load_checkpoint

ACTIONS = ('skip', 'stop')
SCALAR = 'train/skipped_steps'
#: What a batch holds besides tensors, numbers and text.
BATCH_TYPES = [DetDataSample, HorizontalBoxes, InstanceData, PixelData]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Make no optimiser step from a loss or gradient that is not finite.

    Weights, moments and EMA stay as they are; the schedule advances. The log
    names the iteration, the images and the losses, and a file in
    ``WORK_DIR/nonfinite`` reproduces the step (`replay`).

    All processes take the same decision: one flag is reduced over them. With
    accumulated gradients, the whole step is skipped. A loss scaler finds its
    scale by infinite gradients, so these count only at a scale of 1.

    Each step costs one norm of the gradients, one all-reduce of two numbers,
    and one wait for the device, where clipping waits for the norm anyway.

    Args:
        action: ``skip`` the step, or ``stop`` the run.
        max_consecutive: The run stops after more skipped steps in a row.
        max_dumps: Most files that a process writes, each with the weights.

    Raises:
        TypeError: If a number has a wrong type.
        ValueError: If a value is not possible.
    """

    # After hooks that set random states.
    priority = 'LOWEST'

    def __init__(
        self,
        action: str = 'skip',
        max_consecutive: int = 10,
        max_dumps: int = 2,
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(
                f'action={action!r}: expected one of {list(ACTIONS)}'
            )
        check_at_least(0, max_consecutive=max_consecutive, max_dumps=max_dumps)
        self.action = action
        self.max_consecutive = max_consecutive
        self.max_dumps = max_dumps
        self.skipped = 0
        self.consecutive = 0
        self._num_dumps = 0
        # What was not finite in the last step: 'loss', 'gradient' or None.
        self._not_finite: str | None = None
        # The batches whose gradients are accumulated, and their losses.
        self._batches: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Replace the updates of the optimiser wrapper and of the averages.

        Raises:
            TypeError: If the wrapper is none of mmengine's.
        """
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper):
            raise TypeError(
                f'NonFiniteHook: optim_wrapper is a {type(wrapper).__name__}, '
                'expected an OptimWrapper or AmpOptimWrapper'
            )
        self._wrapper = wrapper
        wrapper.update_params = self._update_params
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self._pause_average(hook.ema_model)
        history = runner.message_hub.log_scalars.get(SCALAR)
        if history:  # of a resumed run
            self.skipped = int(history.current())

    def before_train_iter(
        self, runner: Runner, data_batch: Any, **_: Any
    ) -> None:
        """Remember the batch and the random states."""
        if not self._losses:  # the last step was made or skipped
            self._batches.clear()
        states = {
            'python': random.getstate(),
            'numpy': np.random.get_state(),
            'torch': torch.get_rng_state(),
        }
        if torch.cuda.is_available():  # kept on the host: no wait
            states['cuda'] = torch.cuda.get_rng_state()
        self._batches.append(
            {
                'iteration': runner.iter + 1,
                'batch': data_batch,
                'random_states': states,
            }
        )

    def _update_params(
        self,
        loss: Tensor,
        step_kwargs: dict[str, Any] | None = None,
        zero_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Replace the method of the optimiser wrapper of this name."""
        wrapper = self._wrapper
        self._losses.append(loss.detach())
        wrapper.backward(wrapper.scale_loss(loss))
        self._not_finite = None
        if wrapper.should_update():
            self._not_finite = self._find_non_finite()
            self._losses.clear()
            if self._not_finite is None:
                self.consecutive = 0
                wrapper.step(**(step_kwargs or {}))
            else:
                self.consecutive += 1
                self.skipped += 1
                wrapper.message_hub.update_scalar(SCALAR, self.skipped)
            wrapper.zero_grad(**(zero_kwargs or {}))

    def _find_non_finite(self) -> str | None:
        """Return ``loss`` or ``gradient`` if one is not finite in any process.

        This is the step's only wait for the device.
        """
        bad_loss = ~torch.stack(self._losses).isfinite().all()
        bad_gradient = torch.zeros_like(bad_loss)
        scaler = getattr(self._wrapper, 'loss_scaler', None)
        if scaler is None or scaler.get_scale() <= 1:
            gradients = [
                parameter.grad
                for group in self._wrapper.param_groups
                for parameter in group['params']
                if parameter.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(gradients)
            bad_gradient = ~norm.isfinite().to(bad_loss.device)
        flags = torch.stack([bad_loss, bad_gradient]).float()
        all_reduce(flags, 'max')
        loss, gradient = flags.tolist()
        return 'loss' if loss else 'gradient' if gradient else None

    def after_train_iter(
        self, runner: Runner, outputs: dict[str, Any], **_: Any
    ) -> None:
        """Report a step that was not made.

        Raises:
            UsageError: If the run is to stop.
        """
        losses = {
            name: value.detach()
            for name, value in outputs.items()
            if isinstance(value, Tensor)
        }
        self._batches[-1]['losses'] = losses
        if self._not_finite is None:
            return
        text, is_beyond_repair = self._describe(runner)
        print_log(text, logger='current', level=logging.ERROR)
        for name in losses:
            history = runner.message_hub.log_scalars.get(f'train/{name}')
            if history is not None:
                values, counts = history.data
                # Logged by now; the means of later lines would be NaN.
                if not math.isfinite(values[-1]):
                    values[-1] = counts[-1] = 0
        too_many = self.consecutive > self.max_consecutive
        if self.action == 'stop' or too_many or is_beyond_repair:
            raise UsageError(text)

    def _describe(self, runner: Runner) -> tuple[str, bool]:
        """Dump the batches of this process to blame, and gather one line.

        Returns:
            The line, the same in all processes, and whether statistics of
            norms are not finite, which no skipped step repairs.
        """
        batches = self._batches
        if self._not_finite == 'loss':
            batches = [b for b in batches if _bad_losses(b)]
        losses = [name for b in batches for name in _bad_losses(b)]
        images = [
            getattr(sample, 'img_id', None)
            for b in batches
            for sample in b['batch'].get('data_samples', ())
        ]
        files = self._dump(runner, batches) if batches else []
        statistics = [
            name
            for name, buffer in runner.model.named_buffers()
            if 'running_' in name and not buffer.isfinite().all()
        ]
        found = all_gather_object((losses, images, files, statistics))
        losses, images, files, statistics = (
            list(chain(*column)) for column in zip(*found, strict=True)
        )
        names = f' ({", ".join(sorted(set(losses)))})' if losses else ''
        text = (
            f'iteration {runner.iter + 1}: the {self._not_finite} is not '
            f'finite{names} on the images {images}; no step was made '
            f'({self.skipped} so far, {self.consecutive} in a row); '
            + (f'reproduced by {", ".join(files)}' if files else 'no dump')
        )
        if statistics:
            text += (
                f'; {statistics[0]} is not finite either, and no skipped step '
                'repairs that: --resume continues from the last checkpoint'
            )
        return text, bool(statistics)

    def _dump(
        self, runner: Runner, batches: list[dict[str, Any]]
    ) -> list[str]:
        """Write a dump, unless there are enough; return its name, if any."""
        if self._num_dumps >= self.max_dumps:
            return []
        self._num_dumps += 1
        name = f'iter_{runner.iter + 1}_rank_{get_rank()}.pth'
        path = Path(runner.work_dir, 'nonfinite', name)
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        content = {
            'batches': batches,
            'state_dict': model.state_dict(),
            'not_finite': self._not_finite,
            'config': runner.cfg.pretty_text,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        try:
            atomic_write(path, buffer.getvalue())
        except UsageError as error:  # of a full disk: no reason to end
            return [f'nothing, {error}']
        return [str(path)]

    def _pause_average(self, ema: Any) -> None:
        """Keep an average of the weights from counting a skipped step."""
        update = ema.update_parameters

        def update_parameters(model: torch.nn.Module) -> None:
            if self._not_finite is None:
                update(model)

        ema.update_parameters = update_parameters


def load_dump(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the dump of a step without running code from it.

    Args:
        path: A file written by `NonFiniteHook`.

    Returns:
        ``state_dict``, ``config`` as text, ``not_finite`` (``loss`` or
        ``gradient``), and ``batches``, each with ``iteration``, ``batch``,
        ``losses`` and ``random_states`` before its forward.

    Raises:
        UsageError: If it is no dump, or holds other types than those of
            mmdet's batches.
    """
    with torch.serialization.safe_globals(BATCH_TYPES):
        return load_checkpoint(path)


def replay(
    model: BaseModel, path: str | os.PathLike[str], index: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Make the forward of a dumped step again.

    Example::

        model = MODELS.build(Config.fromfile(CONFIG).model)
        loss, losses = replay(model, 'iter_12_rank_0.pth')

    Args:
        model: Built from the same config; receives the dump's weights.
        path: A file written by `NonFiniteHook`.
        index: Which of its batches.

    Returns:
        The loss to call ``backward`` on, and all losses by name.
    """
    dump = load_dump(path)
    entry = dump['batches'][index]
    model.load_state_dict(dump['state_dict'])
    model.train()
    states = entry['random_states']
    random.setstate(states['python'])
    np.random.set_state(states['numpy'])
    torch.set_rng_state(states['torch'])
    if torch.cuda.is_available() and 'cuda' in states:
        torch.cuda.set_rng_state(states['cuda'])
    data = model.data_preprocessor(entry['batch'], True)
    loss, losses = model.parse_losses(model(**data, mode='loss'))
    return loss, losses


def _bad_losses(batch: dict[str, Any]) -> list[str]:
    return [
        name
        for name, value in batch['losses'].items()
        if 'loss' in name and not value.isfinite().all()
    ]
