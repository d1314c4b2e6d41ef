# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from factories import build, detector_config
from forked import in_processes
from mmengine.config import Config
from parallel_steps import COUNTS, assert_equal, batch, detector, share, steps
from torch import Tensor
from toy_runs import Losses, toy_runner

from lors_det.engine import UsageError
from lors_det.engine.nonfinite import NonFiniteHook
from lors_det.engine.sharding import FullySharded, ShardedCheckpointHook

DDP = {'type': 'MMDistributedDataParallel', 'device_ids': None}
SHARDED = {'type': 'FullySharded', 'units': ['layer']}


def sharded_steps() -> tuple[Any, ...]:
    model = detector('lors')
    model.is_init = True
    if dist.get_rank():
        with torch.no_grad():  # the weights of the first process count
            model.queries.content.add_(1)
    model = FullySharded(model)
    model.is_saved_whole = True
    boxes = predicted(model, share(batch(COUNTS)))
    held = sum(x.to_local().numel() for x in model.parameters())
    return *steps(model, share(batch(COUNTS)), 1), held, boxes


def predicted(model: Any, data: dict[str, list[Any]]) -> Tensor:
    """(B, detections, 4) boxes."""
    with torch.no_grad():
        samples = model.eval().test_step(data)
    model.train()
    return torch.stack([x.pred_instances.bboxes for x in samples])


def test_processes_are_one() -> None:
    model = detector('lors')
    boxes = predicted(model, batch(COUNTS))
    alone = steps(model, batch(COUNTS), 1)
    found = in_processes(2, sharded_steps)
    assert_equal(found, alone, COUNTS)
    weights = sum(x.numel() for x in alone[2])
    held = [each[3] for each in found]
    assert sum(held) == weights
    assert max(held) < 0.51 * weights
    together = torch.cat([each[4] for each in found])
    torch.testing.assert_close(together, boxes, rtol=0, atol=1e-10)


def parallel_run(
    work_dir: Path, wrapper: dict[str, Any], start: str | None = None
) -> dict[int, float]:
    """Train a linear layer for twelve steps, or go on; the losses."""
    losses, watch = Losses(), NonFiniteHook(max_dumps=1)
    sharded = wrapper is SHARDED
    hooks = [ShardedCheckpointHook()] if sharded else []
    toy_runner(
        work_dir,
        loop='iterations',
        custom_hooks=[losses, watch, *hooks],
        launcher='pytorch',
        cfg=Config({'model_wrapper_cfg': wrapper}),
        resume=start is not None,
        load_from=start,
    ).train()
    assert watch.max_dumps == (0 if sharded else 1)
    return losses.found


def runs(folder: Path) -> list[dict[int, float]]:
    """By DDP, in parts, and in parts from checkpoints of both."""
    return [
        parallel_run(folder / 'ddp', DDP),
        parallel_run(folder / 'sharded', SHARDED),
        parallel_run(folder / 'a', SHARDED, f'{folder}/sharded/iter_5.pth'),
        parallel_run(folder / 'b', SHARDED, f'{folder}/ddp/iter_5.pth'),
    ]


def test_checkpoints_are_those_of_any_training(tmp_path: Path) -> None:
    for found in in_processes(2, runs, tmp_path):
        expected, *others = found
        assert len(set(expected.values())) == 12
        last = {i: loss for i, loss in expected.items() if i > 5}
        assert others == [expected, last, last]
    plain, *others = (
        torch.load(tmp_path / name / 'iter_12.pth', weights_only=False)
        for name in ('ddp', 'sharded', 'a', 'b')
    )
    for other in others:
        for key in ('state_dict', 'optimizer'):
            torch.testing.assert_close(other[key], plain[key], rtol=0, atol=0)


def mistakes() -> list[str]:
    """What is wrong settings' answer."""
    model = build(detector_config())
    found = []
    with pytest.raises(ValueError, match='model_wrapper_cfg') as error:
        FullySharded(model, ['decoder', 'head'])
    found.append(str(error.value))
    with pytest.raises(UsageError) as error:
        FullySharded(model).train_step({}, None)
    found.append(str(error.value))
    return found


def test_wrong_settings() -> None:
    (found,) = in_processes(1, mistakes)
    assert found == [
        "model_wrapper_cfg.units=['decoder', 'head']: the model has no "
        "'head', expected names out of ['data_preprocessor', 'backbone', "
        "'neck', 'decoder', 'queries', 'criterion']",
        'model_wrapper_cfg.type=FullySharded: checkpoints need '
        "default_hooks.sharded=dict(type='lors_det.engine.sharding."
        "ShardedCheckpointHook')",
    ]


def test_a_hook_without_parts(tmp_path: Path) -> None:
    runner = toy_runner(tmp_path, hooks=[ShardedCheckpointHook()])
    with pytest.raises(UsageError, match='several processes with model_wrap'):
        runner.train()
