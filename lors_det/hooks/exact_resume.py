# SPDX-License-Identifier: Apache-2.0
"""Resuming as if nothing had happened.

mmengine stores weights, optimiser, schedule, loss scaler, EMA and log. What
it does not store needs no storing here: before each step, and before the
batch of each step is loaded (by whichever worker), all random states are set
to a function of seed, process and iteration. What is left is where the
sampler stood and what seed it had; the sampler walks there by indices alone,
and loads nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

KEY = 'exact_resume'


def set_random_states(*key: int) -> None:
    """Seed Python's, numpy's and torch's generators.

    Args:
        *key: Numbers from 0; another key gives independent states.
    """
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


class Batch(list[int]):
    """Indices of a batch, and the iteration of the run that it is for."""

    number: int


class NumberedBatches:
    """A batch sampler that numbers its batches, and can begin later.

    Args:
        batches: Batch sampler around a sampler.
        loop: Its iteration numbers the first batch.
    """

    def __init__(self, batches: Any, loop: Any) -> None:
        self.batches = batches
        self.loop = loop
        self.skip = 0

    def skip_iter(self, num_iters: int) -> None:
        """Leave out the first batches of the next pass; for mmengine's loop.

        Args:
            num_iters: How many.
        """
        self.skip = num_iters

    @property
    def sampler(self) -> Any:
        """What gives the indices; mmengine sets its epoch."""
        return self.batches.sampler

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches from where the run stands."""
        number = self.loop.iter
        while True:
            for indices in self.batches:
                if self.skip:
                    self.skip -= 1
                    continue
                batch = Batch(indices)
                batch.number = number
                number += 1
                yield batch
            if not self.skip:
                return
            # A finite sampler in a loop that counts iterations only.
            endless = self.loop.dataloader_iterator
            endless._epoch += 1
            self.sampler.set_epoch(endless._epoch)


def load_batch(dataset: Any, seed: int, rank: int, batch: Batch) -> list[Any]:
    """Load samples from random states that no earlier batch touched.

    Args:
        dataset: By index.
        seed: Of the run.
        rank: Of the process.
        batch: Indices, and the iteration that they are for.
    """
    set_random_states(seed, rank, batch.number, 1)
    return [dataset[index] for index in batch]


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a resumed run repeat, bit by bit, one that was never stopped.

    On a CPU, with the same config and the same number of processes, for both
    loops of mmengine and for checkpoints from anywhere in an epoch; mmengine
    alone begins that epoch again. Not covered is what lives in a process
    only: gradients that were accumulated when the checkpoint was written,
    caches of transforms (``CachedMosaic``), running statistics of batch norms
    in processes other than the first.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        self.start = self.epoch = 0

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Read where the sampler stood.

        Args:
            runner: Of the run.
            checkpoint: As loaded.
        """
        if not runner._resume:
            return
        self.resumed = checkpoint.get(KEY, {})
        if not self.resumed:
            runner.logger.warning(
                'The checkpoint was written without ExactResumeHook: the run '
                'goes on where it was, but not bit by bit'
            )

    def before_train(self, runner: Runner) -> None:
        """Put the sampler where it stood, and number its batches.

        Args:
            runner: Of the run.
        """
        loop = runner.train_loop
        loader = loop.dataloader
        if (
            not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop))
            or loader.batch_sampler is None
        ):
            raise TypeError(
                f'ExactResumeHook: {type(loop).__name__} and its data loader '
                'are unknown to it, expected EpochBasedTrainLoop or '
                'IterBasedTrainLoop with a sampler of indices; without it in '
                'default_hooks, mmengine resumes as well as it can'
            )
        self.batches = NumberedBatches(loader.batch_sampler, loop)
        # The loader's own guard is against changes while it is read.
        vars(loader)['batch_sampler'] = self.batches
        # What torch asks for a whole batch, if a dataset has it.
        loader.dataset.__getitems__ = partial(
            load_batch, loader.dataset, runner.seed, get_rank()
        )
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator.skip_iter = self.batches.skip_iter
        else:
            run_iter = loop.run_iter
            # mmengine counts from 0, also where an epoch goes on.
            loop.run_iter = lambda _, data_batch: run_iter(
                loop.iter - self.start, data_batch
            )
        if self.resumed is not None:
            self._restore_sampler(runner, self.resumed)

    def _restore_sampler(self, runner: Runner, state: dict[str, Any]) -> None:
        now = {'batches': len(self.batches), 'processes': get_world_size()}
        then = {key: state.get(key, now[key]) for key in now}
        in_epoch = max(0, runner.iter - runner.epoch * now['batches'])
        skip = state.get('position', in_epoch)
        if now != then:
            skip = skip * now['batches'] // then['batches']
            runner.logger.warning(
                f'The checkpoint is of a run with {then} per epoch, this one '
                f'has {now}: it goes on, but not bit by bit'
            )
        if state.get('sampler_seed') is not None:
            self.batches.sampler.seed = state['sampler_seed']
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.skip = skip

    def before_train_epoch(self, runner: Runner) -> None:
        """Remember at which iteration the epoch began.

        Args:
            runner: Of the run.
        """
        self.epoch = runner.epoch
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.start = runner.iter - self.batches.skip

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Set all random states for this step.

        Args:
            runner: Of the run.
            batch_idx: Not used.
            data_batch: Not used.
        """
        set_random_states(runner.seed, get_rank(), runner.iter, 0)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Store where the sampler stands.

        Args:
            runner: Of the run.
            checkpoint: To be written.
        """
        meta = checkpoint['meta']
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if meta['iter'] % accumulated:
            runner.logger.warning(
                'The checkpoint holds no accumulated gradients: resumed, the '
                'run will not go on bit by bit; a checkpoint interval that is '
                f'a multiple of accumulative_counts={accumulated} would'
            )
        in_epoch = meta['epoch'] == self.epoch
        checkpoint[KEY] = {
            'position': meta['iter'] - self.start if in_epoch else 0,
            'batches': len(self.batches),
            'processes': get_world_size(),
            'sampler_seed': getattr(self.batches.sampler, 'seed', None),
        }
