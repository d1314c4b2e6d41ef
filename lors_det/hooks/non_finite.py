# SPDX-License-Identifier: Apache-2.0
"""Steps whose loss or gradient is not finite: skipped, or the end of a run."""

from __future__ import annotations

import logging
import math
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
from torch.distributed.tensor import DTensor

from lors_det.errors import UsageError
from lors_det.hooks import step_dump as dumps
from lors_det.lors.config import check_at_least

ACTIONS = ('skip', 'stop')
SCALAR = 'train/skipped_steps'


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Make no optimiser step from a loss or gradient that is not finite.

    Weights, moments and EMA stay as they are; the schedule goes on. The log
    gets the iteration, the ids of the images and the names of the losses, and
    a file in ``WORK_DIR/nonfinite`` all that reproduces it (`replay`).

    All processes take the same decision: one flag is reduced over them. With
    accumulated gradients, the whole step is skipped. Under a loss scaler,
    infinite gradients are how it finds its scale, and left to it; they count
    once the scale is down to 1.

    Cost for each step: one norm of the gradients, one all-reduce of two
    numbers, and one wait for the device, at the place where clipping waits
    for the norm anyway.

    Args:
        action: ``skip`` the step, or ``stop`` the run.
        max_consecutive: Steps skipped in a row, after which the run stops.
        max_dumps: Files that a process writes at most, each with the weights.

    Raises:
        TypeError: If a number has a wrong type.
        ValueError: If a value is not possible.
    """

    # After all that may set random states.
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
        self._verdict: str | None = None  # of the last step
        self._batches: list[dict[str, Any]] = []  # that went into it

    def before_train(self, runner: Runner) -> None:
        """Take over the updates of the runner's optimiser wrapper.

        Args:
            runner: The runner.

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
                self._guard(hook.ema_model)
        history = runner.message_hub.log_scalars.get(SCALAR)
        if history:  # of a resumed run
            self.skipped = int(history.current())

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Remember the batch and the random states.

        Args:
            runner: The runner.
            batch_idx: Not read.
            data_batch: The batch, as it comes from the loader.
        """
        if self._updated:
            self._batches.clear()
            self._updated = False
        self._batches.append(
            {
                'iteration': runner.iter + 1,
                'batch': data_batch,
                'random_states': dumps.random_states(),
            }
        )

    def _update_params(
        self,
        loss: Tensor,
        step_kwargs: dict[str, Any] | None = None,
        zero_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Stand for the wrapper's method of this name."""
        wrapper = self._wrapper
        bad = ~loss.detach().isfinite()
        bad = bad if self._bad_loss is None else self._bad_loss | bad
        wrapper.backward(wrapper.scale_loss(loss))
        self._verdict = None
        if wrapper.should_update():
            self._verdict = self._judge(bad)
            self._bad_loss, self._updated = None, True
            if self._verdict is None:
                self.consecutive = 0
                wrapper.step(**(step_kwargs or {}))
            else:
                self.consecutive += 1
                self.skipped += 1
                wrapper.message_hub.update_scalar(SCALAR, self.skipped)
            wrapper.zero_grad(**(zero_kwargs or {}))
        else:
            self._bad_loss = bad

    def _judge(self, bad_loss: Tensor) -> str | None:
        """What is not finite, in any process: the one wait of the step.

        Args:
            bad_loss: () whether a loss of this process is not.

        Returns:
            ``loss``, ``gradient`` or None.
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
            if isinstance(norm, DTensor):  # of sharded training
                norm = norm.full_tensor()
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

        Args:
            runner: The runner.
            batch_idx: Not read.
            data_batch: Not read.
            outputs: The losses by name.

        Raises:
            UsageError: If the run is to stop.
        """
        self._batches[-1]['losses'] = {
            name: value.detach()
            for name, value in (outputs or {}).items()
            if isinstance(value, Tensor)
        }
        if self._verdict is None:
            return
        guilty = self._batches
        if self._verdict == 'loss':
            guilty = [b for b in guilty if _bad_names(b['losses'])]
        text, is_spoilt = self._describe(runner, guilty)
        print_log(text, logger='current', level=logging.ERROR)
        for name in outputs or {}:
            # By now it is written; a mean of the next lines would hide them.
            _forget_last(runner.message_hub.log_scalars.get(f'train/{name}'))
        too_many = self.consecutive > self.max_consecutive
        if self.action == 'stop' or too_many or is_spoilt:
            raise UsageError(text)

    def _describe(
        self, runner: Runner, guilty: list[dict[str, Any]]
    ) -> tuple[str, bool]:
        """One line, the same in all processes; and whether it is past help.

        Args:
            runner: The runner.
            guilty: The batches of this process to blame; they are dumped.
        """
        names = sorted({n for b in guilty for n in _bad_names(b['losses'])})
        images = [i for b in guilty for i in dumps.image_ids(b['batch'])]
        files = [self._dump(runner, guilty) or ''] if guilty else []
        spoilt = dumps.spoilt_statistics(runner.model)
        found = all_gather_object((names, images, files, spoilt))
        names, images, files, spoilt = (
            [entry for each in column for entry in each if entry != '']
            for column in zip(*found, strict=True)
        )
        where = f' ({", ".join(sorted(set(names)))})' if names else ''
        text = (
            f'iteration {runner.iter + 1}: the {self._verdict} is not finite'
            f'{where} on the images {images}; no step was made '
            f'({self.skipped} so far, {self.consecutive} in a row); '
            + (f'reproduced by {", ".join(files)}' if files else 'no dump')
        )
        if spoilt:
            text += (
                f'; it left {spoilt[0]} not finite, which no skipped step '
                'mends: --resume goes on from the last checkpoint'
            )
        return text, bool(spoilt)

    def _dump(
        self, runner: Runner, guilty: list[dict[str, Any]]
    ) -> str | None:
        """Write what reproduces it: the weights are those it happened with."""
        if self._num_dumps >= self.max_dumps:
            return None
        self._num_dumps += 1
        name = f'iter_{runner.iter + 1}_rank_{get_rank()}.pth'
        path = Path(runner.work_dir, 'nonfinite', name)
        try:
            dumps.write_dump(
                path,
                runner.model,
                guilty,
                not_finite=self._verdict,
                config=runner.cfg.pretty_text,
            )
        except (OSError, RuntimeError) as error:  # torch's: a full disk
            return f'nothing, {path} cannot be written: {error}'
        return str(path)

    def _guard(self, ema: Any) -> None:
        """Keep an average of the weights from counting a step not made."""
        update = ema.update_parameters

        def update_parameters(model: torch.nn.Module) -> None:
            if self._verdict is None:
                update(model)

        ema.update_parameters = update_parameters


def _bad_names(losses: dict[str, Tensor]) -> list[str]:
    return [
        name
        for name, value in losses.items()
        if 'loss' in name and not value.isfinite().all()
    ]


def _forget_last(history: HistoryBuffer | None) -> None:
    """Take the last value out of later means, if it is not finite."""
    if history is not None:
        values, counts = history.data
        if not math.isfinite(values[-1]):
            values[-1] = counts[-1] = 0
