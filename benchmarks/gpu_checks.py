# SPDX-License-Identifier: Apache-2.0
"""Check what has to be right on a GPU: the first parts of benchmarks.gpu."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.bench import Bench, graphed
from benchmarks.cases import DTYPES, Case
from benchmarks.checked import BOUNDS, compare, relative_error
from benchmarks.end_to_end import DEMO, WEIGHTS
from lors_det.adamixer.postprocess import select_topk
from lors_det.analysis.benchmark import Options, build, random_batch
from lors_det.analysis.run_log import read_starts
from lors_det.errors import one_line
from lors_det.predict import Predictor
from lors_det.safe_load import load_checkpoint

sys.path.append(str(Path(__file__).parents[1] / 'tests'))

from helpers import golden_checks, golden_files

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
#: What replaces sizes on a processor, where the command is only tried.
SMALL = {
    'batch': 2, 'queries': 5, 'stages': 2, 'rank': 2, 'num_param_groups': 1,
    'image_size': (64, 96), 'rounds': 1,
}  # fmt: skip


@dataclass(frozen=True)
class Context:
    """Device and deadline of the parts.

    Args:
        device: As in torch.
        deadline: When all has to be done, of `time.monotonic`.
    """

    device: str
    deadline: float

    @property
    def on_gpu(self) -> bool:
        """True on a GPU; elsewhere all sizes are small."""
        return self.device.startswith('cuda')

    @property
    def dtype(self) -> str:
        """The type that is timed: processors may lack bfloat16."""
        return 'bfloat16' if self.on_gpu else 'float32'

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.monotonic()

    def case(self, *args: Any, **settings: Any) -> Case:
        """Return a case on the device.

        Args:
            *args: Of `Case`.
            **settings: Of `Case`.
        """
        small = {} if self.on_gpu else SMALL
        return Case(*args, **{**settings, **small, 'device': self.device})


def row(what: str, check: Callable[..., str], *args: Any) -> Row:
    """Run a check; an error is a row too.

    Args:
        what: Its name.
        check: Returns what was found, in some words.
        *args: Its arguments.
    """
    try:
        return {'what': what, 'result': 'passed', 'found': check(*args)}
    except Exception as error:
        traceback.print_exc()
        return {'what': what, 'result': 'failed', 'found': one_line(error)}


def golden(context: Context) -> Iterator[Row]:
    """Compare with the numbers of the releases, every gradient too."""
    for path, check in golden_checks.checks():
        for dtype in golden_files.BOUNDS:
            what = f'{path.stem}, {check.__name__}, {dtype}'
            yield row(what, _compare_recorded, context, path, check, dtype)


def _compare_recorded(
    context: Context, path: Path, check: golden_files.Check, dtype: torch.dtype
) -> str:
    worst: dict[str, float] = {}
    recorded = golden_files.Golden.load(path, dtype, context.device)
    for comparison in check(recorded):
        comparison.check(recorded.bounds())
        errors = comparison.errors().values()
        kind = comparison.kind
        worst[kind] = max([worst.get(kind, 0.0), *errors])
    return ', '.join(f'{kind} {error:.0e}' for kind, error in worst.items())


def precision(context: Context) -> Iterator[Row]:
    """Compare outputs and gradients of each type with those in float64."""
    for dtype in DTYPES:
        for model in ('dense', 'lors'):
            case = context.case(
                'decoder', 'train', (), batch=2, dtype=dtype,
                image_size=(320, 320),
            )  # fmt: skip
            yield row(f'{model}, {dtype}', _in_float64, case, model)


def _in_float64(case: Case, model: str) -> str:
    bench = Bench.build(case, model)
    exact = bench.in_float64()
    expected = exact.results(exact.call('plain'))
    found = bench.results(bench.call('eager'))
    error = compare('eager', found, expected, case.dtype)
    outputs, gradients = BOUNDS[case.dtype]
    return (
        f'outputs {error:.0e}, at most {outputs:.0e} allowed; gradients '
        f'within {gradients:.0e}'
    )


def synchronisation(context: Context) -> Iterator[Row]:
    """Run the decoder where torch refuses to wait for the device."""
    for mode in ('forward', 'train'):
        for model in ('dense', 'lors'):
            what = f'{model} decoder, {mode}'
            yield row(what, _never_waits, context, model, mode)


def _never_waits(context: Context, model: str, mode: str) -> str:
    case = context.case('decoder', mode, (), image_size=(320, 320))
    call = Bench.build(case, model).call('eager')
    call()  # handles and workspaces are made here
    torch.cuda.set_sync_debug_mode('error')
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return 'no synchronising call'


def graph(context: Context) -> Iterator[Row]:
    """Record predicting as a CUDA graph, and replay it on other images."""
    yield row('the demo, predicting', _replayed, context)


@torch.no_grad()
def _replayed(context: Context) -> str:
    model = Predictor(DEMO, WEIGHTS, context.device).model
    sizes = torch.tensor([[256.0, 192], [230, 192]], device=context.device)
    images, fresh = torch.randn(2, 2, 3, 192, 256, device=context.device)

    def predict() -> list[Tensor]:
        last = model.decode(images, sizes)[-1]
        return [*select_topk(last, model.max_per_img)]

    replay = graphed(predict)
    images.copy_(fresh)
    found, expected = replay(), predict()
    names = ('scores', 'labels', 'boxes')
    for name, mine, theirs in zip(names, found, expected, strict=True):
        error = relative_error(mine, theirs)
        assert error < 1e-4, f'{name} differ from eager by {error:.0e}'
    is_equal = all(map(torch.equal, found, expected))
    return 'equal to the bit' if is_equal else 'equal to 1e-4'


def compiled(context: Context) -> Iterator[Row]:
    """Train and predict with ``compile=True``."""
    for train in (True, False) if context.on_gpu else (True,):
        what = f'the demo, {"training step" if train else "predicting"}'
        yield row(what, _compiled, context, train)


def _compiled(context: Context, train: bool) -> str:
    options = Options(2, (192, 256), context.device, train=train)
    cfg = Config.fromfile(DEMO).model
    how: Any = True
    if not context.on_gpu:  # as little as shows that it is one graph
        cfg.decoder.num_stages, how = 1, {'backend': 'eager'}
    plain: Any = build(DEMO, cfg, options)
    if context.on_gpu:
        plain.load_state_dict(load_checkpoint(WEIGHTS)['state_dict'])
    other = MODELS.build({**cfg, 'compile': how})
    other.load_state_dict(plain.state_dict())
    other.to(context.device).train(train)
    batch = random_batch(plain, options)
    torch.compiler.reset()
    counters.clear()
    found, expected = (_numbers(m, batch, train) for m in (other, plain))
    broken = dict(counters['graph_break'])
    assert not broken, f'graph breaks: {broken}'
    error = relative_error(found, expected)
    assert error < 1e-3, f'differs from eager by {error:.0e} of its norm'
    return f'no graph break; differs from eager by {error:.0e} of its norm'


def _numbers(model: Any, batch: dict[str, Any], train: bool) -> Tensor:
    """Return losses, or scores, as one tensor; gradients must be finite."""
    data = model.data_preprocessor(batch, train)
    with torch.set_grad_enabled(train):
        if not train:
            samples = model(**data, mode='predict')
            return torch.cat([s.pred_instances.scores for s in samples])
        total, losses = model.parse_losses(model(**data, mode='loss'))
    total.backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.decoder.parameters()
    ), 'a gradient is missing or not finite'
    return torch.stack([v.detach() for k, v in losses.items() if 'loss' in k])


def amp(context: Context) -> Iterator[Row]:
    """Train the demo in mixed precision, with a scaler of the loss."""
    dtype = 'float16' if context.on_gpu else 'bfloat16'
    what = f'the demo, --amp {dtype}'
    command = [sys.executable, 'tools/train.py', DEMO]
    steps = 100 if context.on_gpu else 2
    yield row(what, _train, context, command, dtype, steps)


def launcher(context: Context) -> Iterator[Row]:
    """Train the demo in one process of the launcher."""
    backend = 'nccl' if context.on_gpu else 'gloo'
    what = f'the demo, --amp bfloat16, {backend}'
    command = ['bash', 'tools/dist_train.sh', DEMO, '1']
    steps = 100 if context.on_gpu else 1
    yield row(what, _train, context, command, 'bfloat16', steps)


def _train(
    context: Context, command: list[str], dtype: str, steps: int
) -> str:
    """Train in a process of its own, and read what it has written."""
    options = [
        f'train_cfg.max_iters={steps}', 'train_cfg.val_begin=1000000',
        'default_hooks.logger.interval=1', 'log_processor.window_size=1',
        'randomness.seed=0', 'optim_wrapper.loss_scale=dynamic',
    ]  # fmt: skip
    if not context.on_gpu:  # emulated types are slow
        options += [
            'train_dataloader.batch_size=1',
            'train_dataloader.num_workers=0',
            'train_dataloader.persistent_workers=False',
            'train_dataloader.dataset.pipeline.2.scale=(64,48)',
        ]
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = {
        'PYTHON': sys.executable, 'PYTHONPATH': os.pathsep.join(path),
        'PORT': str(port), 'MAX_RESTARTS': '0',
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, '--amp', dtype, '--work-dir', folder, '--cfg-options',
             *options],
            cwd=ROOT, env={**os.environ, **environment}, capture_output=True,
            text=True, timeout=max(1.0, context.left()),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-300:]
        losses = [each['loss'] for each in read_starts(Path(folder))[-1]]
        checkpoint = Path(folder, 'last_checkpoint').read_text()
        state = torch.load(checkpoint, weights_only=False)['optimizer']
    scale = float(state['loss_scaler']['scale'])
    assert len(losses) == steps, f'{len(losses)} steps of {steps}'
    assert np.isfinite(losses).all(), f'losses {losses}'
    assert scale >= 1, f'scale {scale}'
    fifth = max(1, steps // 5)
    first, last = np.mean(losses[:fifth]), np.mean(losses[-fifth:])
    if steps >= 100:  # a few say nothing
        assert last < 0.9 * first, f'loss {first:.1f} to {last:.1f}'
    return f'loss {first:.1f} to {last:.1f}, scale {scale:.0f}'
