# SPDX-License-Identifier: Apache-2.0
"""Fully sharded training with mmengine's runner, by torch's fully_shard.

mmengine's own strategy is built on torch's first FSDP, which refuses to run
without an accelerator and could not be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from lors_det.engine.checks import UsageError
from lors_det.engine.nonfinite import NonFiniteHook

Batch = dict[str, Any]


@MODEL_WRAPPERS.register_module()
class FullySharded(nn.Module):
    """Each process keeps its part of weights, gradients and moments.

    Units are gathered as a whole before they run, and given up after. A
    stacked weight is used by all stages, so the decoder is one unit.

    Source: FSDP (arXiv:2304.11277), by ``torch.distributed.fsdp``.

    Args:
        module: The model. Its weights are drawn, or loaded, here: as parts
            they could not be.
        units: Names of modules that are units; what is left is another.

    Raises:
        ValueError: If the model has no module of a name.
    """

    def __init__(
        self,
        module: nn.Module,
        units: Sequence[str] = ('backbone', 'decoder'),
    ) -> None:
        super().__init__()
        names = [name for name, _ in module.named_children()]
        for name in units:
            if name not in names:
                raise ValueError(
                    f'model_wrapper_cfg.units={list(units)}: the model has no '
                    f'{name!r}, expected names out of {names}'
                )
        mesh = init_device_mesh(
            get_device(), (torch.distributed.get_world_size(),)
        )
        # mmengine's models have it, torch's modules do not.
        module.init_weights()  # type: ignore[operator]
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
        for unit in (*(module.get_submodule(name) for name in units), module):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        for part in module.modules():
            part.register_load_state_dict_pre_hook(_divide)
        module.register_state_dict_post_hook(_gather)
        self.module: Any = module
        self.is_saved_whole = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; see there."""
        return self.module(*args, **kwargs)

    def train_step(self, data: Batch, optim_wrapper: Any) -> dict[str, Tensor]:
        """Make a step; see mmengine's ``BaseModel.train_step``.

        Args:
            data: A batch from the loader.
            optim_wrapper: Of the runner.

        Raises:
            UsageError: If checkpoints would hold a part of the weights.
        """
        if not self.is_saved_whole:
            raise UsageError(
                'model_wrapper_cfg.type=FullySharded: checkpoints need '
                "default_hooks.sharded=dict(type='lors_det.engine.sharding."
                "ShardedCheckpointHook')"
            )
        return self.module.train_step(data, optim_wrapper)

    def val_step(self, data: Batch) -> list[Any]:
        """Predict; see mmengine's ``BaseModel.val_step``."""
        return self.module.val_step(data)

    def test_step(self, data: Batch) -> list[Any]:
        """Predict; see mmengine's ``BaseModel.test_step``."""
        return self.module.test_step(data)


@HOOKS.register_module()
class ShardedCheckpointHook(Hook):
    """Checkpoints of sharded training are those of any other training.

    Weights and moments are gathered before a checkpoint is written, and
    divided when one is loaded: it fits any number of processes, sharded or
    not. While it is written, each process holds all of it. `NonFiniteHook`
    writes no dumps.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Take part in what the first process alone does otherwise.

        Args:
            runner: The runner.

        Raises:
            UsageError: If its model is not sharded, or to be copied.
        """
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            return  # no training
        if not isinstance(runner.model, FullySharded):
            raise UsageError(
                'default_hooks: ShardedCheckpointHook is for training on '
                'several processes with model_wrapper_cfg.type=FullySharded'
            )
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise UsageError(
                'custom_hooks: EMAHook copies the model, which '
                'model_wrapper_cfg.type=FullySharded does not allow'
            )
        for hook in runner.hooks:
            if isinstance(hook, NonFiniteHook):
                hook.max_dumps = 0  # no process has the weights by itself
        runner.model.is_saved_whole = True
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_state_dict_post_hook(_whole_moments)
        optimizer.register_load_state_dict_post_hook(_divide_moments)
        save = runner.save_checkpoint

        def save_checkpoint(*args: Any, **kwargs: Any) -> None:
            with ExitStack() as stack:
                for owner in (runner.model.module, optimizer):
                    whole = owner.state_dict()
                    stack.enter_context(_answering(owner, whole))
                save(*args, **kwargs)

        runner.save_checkpoint = save_checkpoint


@contextmanager
def _answering(owner: Any, state: dict[str, Any]) -> Iterator[None]:
    """Let an object's ``state_dict`` be known already."""
    owner.state_dict = lambda *_, **__: state
    try:
        yield
    finally:
        del owner.state_dict


def _gather(module: Any, state: dict[str, Any], *_: Any) -> None:
    """Put whole tensors in the place of parts; all processes have to ask."""
    for key, value in state.items():
        if isinstance(value, DTensor):
            state[key] = value.full_tensor()


def _whole_moments(optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
    return tree_map_only(DTensor, DTensor.full_tensor, state)


def _part_like(value: Tensor, other: DTensor) -> DTensor:
    """This process' part of a tensor, divided as another one is."""
    return distribute_tensor(
        value.to(other.device), other.device_mesh, other.placements,
        src_data_rank=None,
    )  # fmt: skip


def _divide(
    module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Put parts in the place of whole tensors that a module is to load."""
    for name, parameter in module.named_parameters(recurse=False):
        value = state.get(prefix + name)
        if (
            isinstance(parameter, DTensor)
            and isinstance(value, Tensor)
            and not isinstance(value, DTensor)
            and value.shape == parameter.shape
        ):
            state[prefix + name] = _part_like(value, parameter)


def _divide_moments(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(parameter, DTensor) and (
                value.shape == parameter.shape
            ):
                state[name] = _part_like(value, parameter)
