# SPDX-License-Identifier: Apache-2.0
"""Steps whose loss or gradient is not finite: skipped, or the end of a run."""

from __future__ import annotations

import logging
import math
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

from lors_det.errors import UsageError
from lors_det.hooks.step_dump import random_states, write_dump
from lors_det.lors.config import check_at_least

ACTIONS = ('skip', 'stop')
SCALAR = 'train/skipped_steps'


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
                f'NonFiniteHook.action={action!r}: expected one of '
                f'{list(ACTIONS)}'
            )
        check_at_least(
            0,
            **{
                'NonFiniteHook.max_consecutive': max_consecutive,
                'NonFiniteHook.max_dumps': max_dumps,
            },
        )
        self.action = action
        self.max_consecutive = max_consecutive
        self.max_dumps = max_dumps
        self.skipped = 0
        self.consecutive = 0
        self._num_dumps = 0
        self._bad_loss: Tensor | None = None
        self._updated = False
        # What was not finite in the last step: 'loss', 'gradient' or None.
        self._not_finite: str | None = None
        self._batches: list[dict[str, Any]] = []  # of the last step

    def before_train(self, runner: Runner) -> None:
        """Take over the updates of the runner's optimiser wrapper.

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
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Remember the batch and the random states."""
        if self._updated:
            self._batches.clear()
            self._updated = False
        self._batches.append(
            {
                'iteration': runner.iter + 1,
                'batch': data_batch,
                'random_states': random_states(),
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
        bad = ~loss.detach().isfinite()
        bad = bad if self._bad_loss is None else self._bad_loss | bad
        wrapper.backward(wrapper.scale_loss(loss))
        self._not_finite = None
        if wrapper.should_update():
            self._not_finite = self._find_non_finite(bad)
            self._bad_loss, self._updated = None, True
            if self._not_finite is None:
                self.consecutive = 0
                wrapper.step(**(step_kwargs or {}))
            else:
                self.consecutive += 1
                self.skipped += 1
                wrapper.message_hub.update_scalar(SCALAR, self.skipped)
            wrapper.zero_grad(**(zero_kwargs or {}))
        else:
            self._bad_loss = bad

    def _find_non_finite(self, bad_loss: Tensor) -> str | None:
        """Ask all processes for a ``loss`` or ``gradient`` that is not finite.

        The one wait of the step for the device.
        """
        scaler = getattr(self._wrapper, 'loss_scaler', None)
        bad_gradient = torch.zeros_like(bad_loss)
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
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Report a step that was not made.

        Raises:
            UsageError: If the run is to stop.
        """
        self._batches[-1]['losses'] = {
            name: value.detach()
            for name, value in (outputs or {}).items()
            if isinstance(value, Tensor)
        }
        if self._not_finite is None:
            return
        blamed = self._batches
        if self._not_finite == 'loss':
            blamed = [b for b in blamed if _non_finite_losses(b['losses'])]
        text, is_beyond_repair = self._describe(runner, blamed)
        print_log(text, logger='current', level=logging.ERROR)
        for name in outputs or {}:
            # Logged by now; it would make the means of later lines NaN.
            _forget_last(runner.message_hub.log_scalars.get(f'train/{name}'))
        too_many = self.consecutive > self.max_consecutive
        if self.action == 'stop' or too_many or is_beyond_repair:
            raise UsageError(text)

    def _describe(
        self, runner: Runner, blamed: list[dict[str, Any]]
    ) -> tuple[str, bool]:
        """Dump the batches of this process to blame, and gather one line.

        Returns:
            The line, the same in all processes, and whether statistics of
            norms are not finite, which no skipped step repairs.
        """
        losses = [n for b in blamed for n in _non_finite_losses(b['losses'])]
        images = [i for b in blamed for i in _image_ids(b['batch'])]
        files = self._dump(runner, blamed) if blamed else []
        statistics = [
            name
            for name, buffer in runner.model.named_buffers()
            if 'running_' in name and not buffer.isfinite().all()
        ]
        found = all_gather_object((losses, images, files, statistics))
        losses, images, files, statistics = (
            list(chain(*column)) for column in zip(*found, strict=True)
        )
        where = f' ({", ".join(sorted(set(losses)))})' if losses else ''
        text = (
            f'iteration {runner.iter + 1}: the {self._not_finite} is not '
            f'finite{where} on the images {images}; no step was made '
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
        try:
            write_dump(
                path, runner.model, batches,
                not_finite=self._not_finite, config=runner.cfg.pretty_text,
            )  # fmt: skip
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


def _non_finite_losses(losses: dict[str, Tensor]) -> list[str]:
    return [
        name
        for name, value in losses.items()
        if 'loss' in name and not value.isfinite().all()
    ]


def _image_ids(batch: Any) -> list[Any]:
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    return [getattr(sample, 'img_id', None) for sample in samples]


def _forget_last(history: HistoryBuffer | None) -> None:
    """Take the last value out of later means, if it is not finite."""
    if history is not None:
        values, counts = history.data
        if not math.isfinite(values[-1]):
            values[-1] = counts[-1] = 0
