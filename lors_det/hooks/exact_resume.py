# SPDX-License-Identifier: Apache-2.0
"""Resume a run bit by bit.

mmengine stores weights, optimiser, schedule, loss scaler, EMA and log. Random
states are not stored: before each step, and before the batch of each step is
loaded, in any worker, they are set to a function of seed, process and
iteration. The position and the seed of the sampler are stored; a resumed
sampler skips indices, and no image is loaded for that.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from itertools import chain
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

    iteration: int


class NumberedBatches:
    """A batch sampler that numbers its batches and can skip the first ones.

    Args:
        batches: Batch sampler around a sampler.
        loop: mmengine's loop; its iteration numbers the first batch.
    """

    def __init__(self, batches: Any, loop: Any) -> None:
        self.batches = batches
        self.sampler = batches.sampler  # mmengine sets its epoch
        self.loop = loop
        self.skip = 0

    def skip_iter(self, num_iters: int) -> None:
        """Skip the first batches of the next pass; mmengine's loop calls it.

        Args:
            num_iters: How many.
        """
        self.skip = num_iters

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, from the iteration of the loop."""
        iteration = self.loop.iter
        while True:
            for indices in self.batches:
                if self.skip:
                    self.skip -= 1
                    continue
                batch = Batch(indices)
                batch.iteration = iteration
                iteration += 1
                yield batch
            if not self.skip:
                return
            # A finite sampler in a loop that counts iterations only.
            endless = self.loop.dataloader_iterator
            endless._epoch += 1
            self.sampler.set_epoch(endless._epoch)


def _load_batch(dataset: Any, seed: int, rank: int, batch: Batch) -> list[Any]:
    """Load samples from random states that no earlier batch has changed."""
    set_random_states(seed, rank, batch.iteration, 1)
    return [dataset[index] for index in batch]


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Make a resumed run equal, bit by bit, to one that was never stopped.

    This holds on a CPU, with the same config and number of processes, for
    both loops of mmengine and checkpoints from anywhere in an epoch.
    ``docs/reliability.md`` says what is not covered.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self.resumed: dict[str, Any] | None = None
        self.start = self.epoch = 0

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Read the position of the sampler."""
        if not runner._resume:
            return
        self.resumed = checkpoint.get(KEY, {})
        if not self.resumed:
            runner.logger.warning(
                'The checkpoint was written without ExactResumeHook: the run '
                'is resumed from it, but not bit by bit'
            )

    def before_train(self, runner: Runner) -> None:
        """Number the batches, and skip those that were done.

        Raises:
            TypeError: If the loop is none of mmengine's two, or its loader
                has no batch sampler.
        """
        loop = runner.train_loop
        loader = loop.dataloader
        if (
            not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop))
            or loader.batch_sampler is None
        ):
            raise TypeError(
                f'ExactResumeHook: {type(loop).__name__} and its data loader '
                'are unknown, expected EpochBasedTrainLoop or '
                'IterBasedTrainLoop with a batch sampler, or no '
                'ExactResumeHook in default_hooks'
            )
        self.batches = NumberedBatches(loader.batch_sampler, loop)
        # The loader's __setattr__ forbids a new batch sampler, lest it be
        # changed during a pass; no pass has begun.
        vars(loader)['batch_sampler'] = self.batches
        # torch calls this method for a whole batch, if a dataset has it.
        loader.dataset.__getitems__ = partial(
            _load_batch, loader.dataset, runner.seed, get_rank()
        )
        if isinstance(loop, IterBasedTrainLoop):
            endless = loop.dataloader_iterator
            if not hasattr(endless, 'skip_iter'):
                # mmengine 0.10.7 has begun with the batches, and loads those
                # that it skips: begin anew, and give nothing for those.
                sampler = self.batches.sampler
                if hasattr(sampler, 'indices'):  # of an InfiniteSampler
                    sampler.indices = sampler._indices_of_rank()
                loader._iterator = None
                self.batches.skip = loop.iter
                endless._iterator = chain([None] * loop.iter, loader)
            endless.skip_iter = self.batches.skip_iter
        else:
            run_iter = loop.run_iter
            # mmengine counts from 0 also in an epoch that is resumed.
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
                f'has {now}: it is resumed, but not bit by bit'
            )
        if state.get('sampler_seed') is not None:
            self.batches.sampler.seed = state['sampler_seed']
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.skip = skip

    def before_train_epoch(self, runner: Runner) -> None:
        """Remember the iteration at which the epoch began."""
        self.epoch = runner.epoch
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.start = runner.iter - self.batches.skip

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        """Set all random states for this step."""
        set_random_states(runner.seed, get_rank(), runner.iter, 0)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Store the position and the seed of the sampler."""
        meta = checkpoint['meta']
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if meta['iter'] % accumulated:
            runner.logger.warning(
                'The checkpoint holds no accumulated gradients: a run resumed '
                'from it is not equal bit by bit; a checkpoint interval that '
                f'is a multiple of accumulative_counts={accumulated} avoids it'
            )
        in_epoch = meta['epoch'] == self.epoch
        checkpoint[KEY] = {
            'position': meta['iter'] - self.start if in_epoch else 0,
            'batches': len(self.batches),
            'processes': get_world_size(),
            'sampler_seed': getattr(self.batches.sampler, 'seed', None),
        }
