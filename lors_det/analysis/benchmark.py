# SPDX-License-Identifier: Apache-2.0
"""Behind tools/benchmark.py: whole detectors side by side, part by part."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from lors_det.adamixer.detector import sizes_of
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.analysis import timing
from lors_det.analysis.random_batch import random_batch
from lors_det.analysis.tables import ascii_table
from lors_det.errors import UsageError
from lors_det.safe_load import install

PREDICT_PARTS = ('backbone', 'neck', 'decoder', 'post-processing')
TRAIN_PARTS = ('backbone', 'neck', 'decoder', 'criterion', 'backward')


@dataclass(frozen=True)
class Options:
    """How detectors are measured.

    Args:
        batch_size: Images B of a batch.
        image_size: Height and width in pixels.
        device: Where to run.
        amp: Type of automatic mixed precision; None for none.
        train: Whether to measure losses and gradients, or predictions.
        compile: Whether to set the key ``compile`` of the models.
        repeats: Rounds that count.

    Raises:
        UsageError: If a value is wrong, or the device is not there.
    """

    batch_size: int = 1
    image_size: tuple[int, int] = (800, 1344)
    device: str = 'cpu'
    amp: str | None = None
    train: bool = False
    compile: bool = False
    repeats: int = 10

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        numbers = {
            '--batch-size': self.batch_size,
            '--image-size': min(self.image_size),
            '--repeats': self.repeats,
        }
        for option, value in numbers.items():
            if value < 1:
                raise UsageError(f'{option} {value}: expected 1 or more')
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = 'unknown'
        if kind not in ('cpu', 'cuda'):
            raise UsageError(
                f'--device {self.device}: expected cpu, cuda or cuda:N'
            )
        if kind == 'cuda' and not torch.cuda.is_available():
            raise UsageError(f'--device {self.device}: torch finds no GPU')
        if self.amp == 'float16' and kind == 'cpu':
            raise UsageError('--amp float16 needs --device cuda')

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts, in order."""
        return TRAIN_PARTS if self.train else PREDICT_PARTS


@dataclass
class Result:
    """What was measured of one detector.

    Args:
        seconds: Of every round, for a whole batch.
        parts: The same by part; measured by themselves, with a wait for the
            device after each.
        peak_bytes: Memory beyond that of the weights; gradients are in it,
            an optimizer is not. None where it cannot be counted: of compiled
            code on a CPU.
    """

    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    peak_bytes: int | None = None


class Subject:
    """A detector that is measured on random images with a few random boxes.

    Args:
        model: An `AdaMixer`, on its device.
        options: How to measure it.
    """

    def __init__(self, model: Any, options: Options) -> None:
        self.model = model
        self.options = options
        self.taken: dict[str, list[float]] = {p: [] for p in options.parts}

    def whole(self, number: int) -> timing.Call:
        """A batch the way that users run it: `timing.Prepare`."""
        batch = self._batch(number)

        def train() -> Any:
            with self._autocast():
                data = self.model.data_preprocessor(batch, True)
                losses = self.model(**data, mode='loss')
            loss = self.model.parse_losses(losses)[0]
            loss.backward()
            return loss

        def predict() -> Any:
            with torch.no_grad(), self._autocast():
                data = self.model.data_preprocessor(batch, False)
                return self.model(**data, mode='predict')

        return train if self.options.train else predict

    def by_part(self, number: int) -> timing.Call:
        """The same step by step, each timed into ``taken``."""
        batch = self._batch(number)
        device = self.options.device

        def call() -> None:
            with torch.set_grad_enabled(self.options.train):
                start = time.perf_counter()
                for part in self._steps(batch):
                    timing.synchronize(device)
                    now = time.perf_counter()
                    self.taken[part].append(now - start)
                    start = now

        return call

    def _steps(self, batch: Any) -> Iterator[str]:
        """Do one part after the other; say which one is done."""
        model, train = self.model, self.options.train
        with self._autocast():
            data = model.data_preprocessor(batch, train)
            images, samples = data['inputs'], data['data_samples']
            feats = model.backbone(images)
            yield 'backbone'
            feats = model.neck(feats)
            yield 'neck'
            sizes = sizes_of(images, samples)
            stages = model.decoder(feats, *model.queries(sizes))
            yield 'decoder'
            if not train:
                top = select_topk(stages[-1], model.max_per_img)
                to_instances(*top, [s.scale_factor for s in samples])
                yield 'post-processing'
                return
            truth = [sample.gt_instances for sample in samples]
            losses = model.criterion(
                stages, [t.bboxes for t in truth], [t.labels for t in truth],
                sizes,
            )  # fmt: skip
            yield 'criterion'
        model.parse_losses(losses)[0].backward()
        yield 'backward'

    def _batch(self, number: int) -> dict[str, Any]:
        """Random images and boxes; gradients from before are gone."""
        self.model.zero_grad(set_to_none=True)
        return random_batch(
            self.options.batch_size,
            self.options.image_size,
            self.model.decoder.num_classes,
            number,
        )

    def _autocast(self) -> torch.autocast:
        device, amp = self.options.device.split(':')[0], self.options.amp
        dtype = getattr(torch, amp or 'bfloat16')
        return torch.autocast(device, dtype, enabled=amp is not None)


def build(
    name: str,
    model_cfg: Mapping[str, Any],
    options: Options,
    checkpoint: str | None = None,
) -> nn.Module:
    """Build a detector, with random weights or those of a checkpoint.

    Args:
        name: Of the config, for the error message.
        model_cfg: The config's ``model``.
        options: Device, mode, and whether to compile.
        checkpoint: A file.

    Raises:
        UsageError: If it is no detector of this project, or cannot be built.
    """
    if model_cfg.get('type') != 'AdaMixer':
        raise UsageError(
            f'{name}: model.type={model_cfg.get("type")!r}: expected '
            "'AdaMixer'"
        )
    settings = copy.deepcopy(dict(model_cfg))
    if options.compile:
        settings['compile'] = True
    init_default_scope('mmdet')
    try:
        model: nn.Module = MODELS.build(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f'{name}: {error}') from error
    if checkpoint:
        install()
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(options.device).train(options.train)


def measure(
    models: Mapping[str, nn.Module], options: Options
) -> dict[str, Result]:
    """Measure detectors in turns.

    Args:
        models: By name, on their device.
        options: How to measure.
    """
    subjects = {name: Subject(m, options) for name, m in models.items()}
    calls: dict[str, timing.Prepare] = {}
    for name, subject in subjects.items():
        calls[name] = subject.whole
        calls[f'{name} by part'] = subject.by_part
    seconds = timing.measure(calls, options.repeats, device=options.device)
    found = {}
    for name, subject in subjects.items():
        peak = None
        if not (options.compile and options.device == 'cpu'):
            peak = timing.peak_bytes(subject.whole(0), options.device)
        parts = {
            part: taken[-options.repeats :]  # without the warm-up
            for part, taken in subject.taken.items()
        }
        found[name] = Result(seconds[name], parts, peak)
    return found


def table(results: Mapping[str, Result], options: Options) -> str:
    """Results for a terminal; ratios are against the first.

    Args:
        results: By the name of the detector.
        options: How they were measured.
    """
    first = next(iter(results.values()))
    header = ['config', 'time vs. first', 'images/s', 'ms per batch']
    rows = [[*header, *(f'{part} [ms]' for part in options.parts), 'peak']]
    for name, result in results.items():
        whole = timing.Spread.of(result.seconds)
        parts = (timing.Spread.of(result.parts[p]) for p in options.parts)
        peak = result.peak_bytes
        rows.append(
            [
                name,
                _spread(timing.ratio(result.seconds, first.seconds), 1, 2),
                f'{options.batch_size / whole.median:.2f}',
                _spread(whole, 1e3, 1),
                *(f'{1e3 * part.median:.1f}' for part in parts),
                'not counted' if peak is None else f'{peak / 1e6:.0f} MB',
            ]
        )
    return ascii_table(rows)


def _spread(value: timing.Spread, scale: float, digits: int) -> str:
    middle, low, high = (
        f'{scale * x:.{digits}f}'
        for x in (value.median, value.low, value.high)
    )
    return f'{middle} ({low}-{high})'


def check_checkpoints(
    configs: Sequence[str], checkpoints: Sequence[str]
) -> None:
    """Raise UsageError unless all configs have a checkpoint, or none."""
    if checkpoints and len(checkpoints) != len(configs):
        raise UsageError(
            f'--checkpoint: {len(checkpoints)} files for {len(configs)} '
            'configs; expected one for each, in their order'
        )
