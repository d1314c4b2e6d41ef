# SPDX-License-Identifier: Apache-2.0
"""A loss or gradient that is not finite changes nothing but the log."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.factories import build, detector_config
from helpers.forked import in_processes
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn

from lors_det.errors import UsageError
from lors_det.hooks.non_finite import (
    SCALAR,
    NonFiniteHook,
    load_dump,
    replay,
)

#: Inputs that spoil the loss, or the gradient alone.
BAD = {'loss': math.nan, 'gradient': -1.0}


class Toy(BaseModel):
    """A line through the inputs; 0 * sqrt(0) for negative ones."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(1, affine=False).eval()

    def forward(
        self, inputs: list[Tensor], data_samples: Any, mode: str
    ) -> dict[str, Tensor]:
        x = torch.stack(inputs)
        edge = (self.line.weight * (x.amin() >= 0)).abs().sum().sqrt()
        return {
            'loss_line': (self.line(x) ** 2).mean() + torch.rand(()),
            'loss_edge': 0.1 * edge,
            'accuracy': x.amax() / 0,
        }


def items(*values: float) -> list[dict[str, Any]]:
    """One batch for each value; image ids are 1, 2, ..."""
    return [
        {
            'inputs': torch.full((3,), float(value)),
            'data_samples': DetDataSample(metainfo={'img_id': index}),
        }
        for index, value in enumerate(values, 1)
    ]


def wrap(kind: type = OptimWrapper, **options: Any) -> Any:
    torch.manual_seed(0)
    model = Toy()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, kind(optimizer=optimizer, **options)


def loop(
    hook: NonFiniteHook,
    model: Any,
    wrapper: OptimWrapper,
    batches: list[dict[str, Any]],
    work_dir: Path,
    hooks: tuple = (),
) -> SimpleNamespace:
    """mmengine's loop, as far as the hook sees it."""
    runner = SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        hooks=[*hooks, hook],
        message_hub=wrapper.message_hub,
        iter=0,
        work_dir=str(work_dir),
        cfg=Config({'model': {'type': 'Toy'}}),
    )
    for each in hooks:
        each.before_run(runner)
    hook.before_train(runner)
    for item in batches:
        batch = pseudo_collate([item])
        hook.before_train_iter(runner, batch_idx=0, data_batch=batch)
        outputs = model.train_step(batch, wrapper)
        for each in hooks:
            each.after_train_iter(runner, 0, batch, outputs)
        hook.after_train_iter(runner, outputs, batch_idx=0)
        runner.iter += 1
    return runner


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A log of its own for every test."""
    MessageHub._instance_dict.clear()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def values(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def states(model: nn.Module, wrapper: OptimWrapper) -> list[Tensor]:
    moments = wrapper.optimizer.state_dict()['state'].values()
    return values(model) + [v for slot in moments for v in slot.values()]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('kind', BAD)
@pytest.mark.parametrize('clip', [None, {'max_norm': 0.5}])
def test_a_step_is_skipped(
    kind: str,
    clip: dict[str, float] | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook, ema = NonFiniteHook(), EMAHook(momentum=0.3)
    model, wrapper = wrap(clip_grad=clip)
    runner = loop(
        hook, model, wrapper, items(1, 2, BAD[kind], 3), tmp_path, (ema,)
    )
    # As if there had been no such batch: weights, moments, EMA.
    model_2, wrapper_2 = wrap(clip_grad=clip)
    ema_2 = EMAHook(momentum=0.3)
    plain = SimpleNamespace(model=model_2, iter=0)
    ema_2.before_run(plain)
    for item in items(1, 2, 3):
        model_2.train_step(pseudo_collate([item]), wrapper_2)
        ema_2.after_train_iter(plain, 0)
    assert same(states(model, wrapper), states(model_2, wrapper_2))
    assert same(values(ema.ema_model), values(ema_2.ema_model))

    assert runner.message_hub.get_scalar(SCALAR).current() == 1
    names = ' (loss, loss_line)' if kind == 'loss' else ''
    (record,) = (r for r in caplog.records if r.levelno > logging.INFO)
    assert record.levelno == logging.ERROR
    assert record.getMessage() == (
        f'iteration 3: the {kind} is not finite{names} on the images [3]; no '
        'step was made (1 so far, 1 in a row); reproduced by '
        f'{tmp_path}/nonfinite/iter_3_rank_0.pth'
    )


@pytest.mark.parametrize('kind', BAD)
def test_a_dump_makes_the_step_again(kind: str, tmp_path: Path) -> None:
    model, wrapper = wrap()
    batches = items(1, BAD[kind], 3)
    with pytest.raises(UsageError):
        loop(NonFiniteHook('stop'), model, wrapper, batches, tmp_path)
    path = tmp_path / 'nonfinite/iter_2_rank_0.pth'
    dump = load_dump(path)
    assert dump['not_finite'] == kind
    assert "type='Toy'" in dump['config']
    assert same(dump['state_dict'].values(), values(model))
    fresh = Toy()
    torch.manual_seed(9)  # the forward draws a number: the dump has its state
    loss, losses = replay(fresh, path)
    recorded = dump['batches'][0]['losses']
    assert dump['batches'][0]['iteration'] == 2
    assert losses.keys() == recorded.keys()
    for name, value in losses.items():
        assert torch.equal(value, recorded[name]) or value.isnan()
    assert loss.isfinite() == (kind == 'gradient')
    loss.backward()
    assert not fresh.line.weight.grad.isfinite().all()


def test_the_log_shows_it_and_forgets_it(tmp_path: Path) -> None:
    """Later means are those of the steps that were made."""
    model, wrapper = wrap()
    hub = wrapper.message_hub

    class Log(Hook):
        def before_run(self, runner: Any) -> None:
            self.means: list[float] = []

        def after_train_iter(
            self, runner: Any, batch_idx: int, batch: Any, outputs: Any
        ) -> None:
            for name, value in outputs.items():  # as mmengine does
                hub.update_scalar(f'train/{name}', value.detach())
            self.means.append(hub.get_scalar('train/loss').mean(3))

    log = Log()
    batches = items(1, math.nan, 3)
    loop(NonFiniteHook(max_dumps=0), model, wrapper, batches, tmp_path, (log,))
    assert [math.isnan(mean) for mean in log.means] == [False, True, False]
    losses, counts = hub.get_scalar('train/loss').data
    assert counts.tolist() == [1, 0, 1]
    assert log.means[2] == pytest.approx((losses[0] + losses[2]) / 2)


def test_not_for_ever(tmp_path: Path) -> None:
    """Two in a row are borne, twice; three are not."""
    n, hook = math.nan, NonFiniteHook(max_consecutive=2, max_dumps=1)
    with pytest.raises(UsageError, match=r'^iteration 6: .*\(5 so far, 3 in'):
        loop(hook, *wrap(), items(n, n, 1, n, n, n, 1), tmp_path)
    # The count is the run's, and goes on where it is resumed.
    hook = NonFiniteHook(max_consecutive=2, max_dumps=0)
    loop(hook, *wrap(), items(n, n, 1, n, n, 1), tmp_path)
    assert hook.skipped == 9
    files = [path.name for path in (tmp_path / 'nonfinite').iterdir()]
    assert files == ['iter_1_rank_0.pth']


def test_accumulated_gradients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole step is skipped; the dump has the batch that spoilt it."""
    model, wrapper = wrap(accumulative_counts=2)
    hook = NonFiniteHook()
    loop(hook, model, wrapper, items(1, 2, math.nan, 4, 5, 6), tmp_path)
    model_2, wrapper_2 = wrap(accumulative_counts=2)
    for item in items(1, 2, 5, 6):
        model_2.train_step(pseudo_collate([item]), wrapper_2)
    assert same(states(model, wrapper), states(model_2, wrapper_2))
    assert hook.skipped == 1
    assert 'iteration 4: ' in caplog.text
    assert 'on the images [3]' in caplog.text
    (path,) = (tmp_path / 'nonfinite').iterdir()
    (batch,) = load_dump(path)['batches']
    assert batch['iteration'] == 3


@pytest.fixture
def amp(monkeypatch: pytest.MonkeyPatch) -> Any:
    """mmengine's wrapper for mixed precision, which asks for a GPU."""
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    model, wrapper = wrap(AmpOptimWrapper, clip_grad={'max_norm': 1.0})
    wrapper.cast_dtype = torch.bfloat16
    return model, wrapper


@pytest.mark.filterwarnings('ignore:.*CUDA is not available')
@pytest.mark.parametrize('scale', [8.0, 1.0])
def test_a_loss_scaler_may_find_its_scale(
    scale: float, amp: Any, tmp_path: Path
) -> None:
    model, wrapper = amp
    wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)
    before = copy.deepcopy(values(model))
    hook = NonFiniteHook()
    loop(hook, model, wrapper, items(BAD['gradient']), tmp_path)
    assert same(before, values(model))
    # A scale above 1 is halved, and nobody is told; at 1 it is not to blame.
    counted = scale == 1
    assert hook.skipped == counted
    assert wrapper.loss_scaler.get_scale() == (1 if counted else scale / 2)
    # A bad loss is no scale's fault, and leaves the scale as it is.
    scale = wrapper.loss_scaler.get_scale()
    loop(hook, model, wrapper, items(math.nan), tmp_path)
    assert hook.skipped == counted + 1
    assert wrapper.loss_scaler.get_scale() == scale
    loop(hook, model, wrapper, items(1.0), tmp_path)
    assert not same(before, values(model))


def steps_of_a_process(folder: Path) -> tuple[int, list[Tensor]]:
    """Train in one of two; the second has a bad loss in its third step."""
    hook = NonFiniteHook()
    model, wrapper = wrap()
    inputs = (1, 2, math.nan, 3) if dist.get_rank() else (5, 6, 7, 8)
    parallel = MMDistributedDataParallel(model)
    loop(hook, parallel, wrapper, items(*inputs), folder)
    return hook.skipped, list(model.parameters())


@pytest.mark.slow
def test_processes_decide_together(tmp_path: Path) -> None:
    (skipped, mine), other = in_processes(2, steps_of_a_process, tmp_path)
    assert skipped == other[0] == 1
    assert same(mine, other[1])
    assert all(weight.isfinite().all() for weight in mine)
    # Only the process with the bad batch writes it.
    files = [path.name for path in (tmp_path / 'nonfinite').iterdir()]
    assert files == ['iter_3_rank_1.pth']


def test_statistics_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    model, wrapper = wrap()
    model.norm.running_mean.fill_(math.nan)
    with pytest.raises(UsageError, match=r'norm\.running_mean is not finite'):
        loop(NonFiniteHook(), model, wrapper, items(math.nan), tmp_path)


def test_a_full_disk_is_no_reason_to_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / 'nonfinite').write_text('in the way')
    loop(NonFiniteHook(), *wrap(), items(math.nan, 1), tmp_path)
    assert 'cannot be written: ' in caplog.text


def test_a_detectors_step(tmp_path: Path) -> None:
    """All that a batch of boxes consists of survives the dump."""
    model = build(detector_config())
    model.init_weights()
    model.train()
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters()))
    boxes = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([2])
    )
    meta = {'img_id': 7, 'img_shape': (64, 96), 'scale_factor': (1, 2)}
    item = {
        'inputs': torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8),
        'data_samples': DetDataSample(metainfo=meta, gt_instances=boxes),
    }
    model.criterion.loss_iou.loss_weight = math.inf
    with pytest.raises(UsageError, match=r'images \[7\]'):
        loop(NonFiniteHook('stop'), model, wrapper, [item], tmp_path)
    (path,) = (tmp_path / 'nonfinite').iterdir()
    (entry,) = load_dump(path)['batches']
    assert torch.equal(entry['batch']['inputs'][0], item['inputs'])
    assert entry['batch']['data_samples'][0].scale_factor == (1, 2)
    _, losses = replay(build(detector_config()), path)
    assert losses.keys() == entry['losses'].keys()
    for name, value in losses.items():
        recorded = entry['losses'][name]
        if name == 'loss' or 'iou' in name:
            assert recorded.isinf()
            assert value.isfinite()  # this criterion has no infinite weight
        else:
            assert torch.equal(value, recorded)
