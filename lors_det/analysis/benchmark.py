# SPDX-License-Identifier: Apache-2.0
"""Behind tools/benchmark.py: whole detectors side by side, part by part."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.benchmark import timer

from lors_det.adamixer.detector import sizes_of
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.analysis import timing
from lors_det.analysis.random_batch import random_batch
from lors_det.analysis.tables import ascii_table
from lors_det.errors import UsageError

Result = dict[str, Any]


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
        repeats: Number of rounds.

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
        for option, value in (
            ('--batch-size', self.batch_size),
            ('--image-size', min(self.image_size)),
            ('--repeats', self.repeats),
        ):
            if value < 1:
                raise UsageError(f'{option} {value}: expected 1 or more')
        check_device(self.device)
        if self.amp == 'float16' and self.device == 'cpu':
            raise UsageError('--amp float16 needs --device cuda')


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Args:
        device: Value of the option ``--device``.

    Raises:
        UsageError: If it is neither the CPU nor a GPU that torch finds.
    """
    if not re.fullmatch(r'cpu|cuda(:\d+)?', device):
        raise UsageError(f'--device {device}: expected cpu, cuda or cuda:N')
    if device != 'cpu' and not torch.cuda.is_available():
        raise UsageError(f'--device {device}: torch finds no GPU')


class Subject:
    """A detector that is measured on random images with a few random boxes.

    Args:
        model: An `AdaMixer`, on its device.
        options: How to measure it.
    """

    def __init__(self, model: Any, options: Options) -> None:
        self.model = model
        self.options = options
        self.batch = random_batch(
            options.batch_size,
            options.image_size,
            model.decoder.num_classes,
            seed=0,
        )

    def run(self, done: Callable[[str], object] = lambda part: None) -> None:
        """Train or predict on the batch once, as the detector does.

        Args:
            done: Called with the name of each part when it is done.
        """
        model, train = self.model, self.options.train
        model.zero_grad(set_to_none=True)
        with torch.set_grad_enabled(train), self._autocast():
            data = model.data_preprocessor(self.batch, train)
            images, samples = data['inputs'], data['data_samples']
            feats = model.backbone(images)
            done('backbone')
            feats = model.neck(feats)
            done('neck')
            sizes = sizes_of(images, samples)
            stages = model.decoder(feats, *model.queries(sizes))
            done('decoder')
            if not train:
                top = select_topk(stages[-1], model.max_per_img)
                to_instances(*top, [s.scale_factor for s in samples])
                done('post-processing')
                return
            truth = [sample.gt_instances for sample in samples]
            boxes = [instances.bboxes for instances in truth]
            labels = [instances.labels for instances in truth]
            losses = model.criterion(stages, boxes, labels, sizes)
            done('criterion')
        model.parse_losses(losses)[0].backward()
        done('backward')

    def part_seconds(self) -> dict[str, float]:
        """Run with a wait for the device after each part.

        Returns:
            Seconds by the name of the part.
        """
        times = {'start': timer()}
        self.run(lambda part: times.update({part: timer()}))
        return {
            part: end - start
            for (_, start), (part, end) in pairwise(times.items())
        }

    def _autocast(self) -> torch.autocast:
        device, amp = self.options.device.split(':')[0], self.options.amp
        dtype = getattr(torch, amp or 'bfloat16')
        return torch.autocast(device, dtype, enabled=amp is not None)


def build(
    name: str, model_cfg: Mapping[str, Any], options: Options
) -> nn.Module:
    """Build a detector with random weights: time does not depend on them.

    Args:
        name: Of the config, for the error message.
        model_cfg: The config's ``model``.
        options: Device, mode, and whether to compile.

    Raises:
        UsageError: If it is no detector of this project, or cannot be built.
    """
    if model_cfg.get('type') != 'AdaMixer':
        raise UsageError(
            f'{name}: model.type={model_cfg.get("type")!r}: expected '
            "'AdaMixer'"
        )
    settings = {**copy.deepcopy(model_cfg), 'compile': options.compile}
    init_default_scope('mmdet')
    try:
        model: nn.Module = MODELS.build(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f'{name}: {error}') from error
    return model.to(options.device).train(options.train)


def measure(
    models: Mapping[str, nn.Module], options: Options
) -> dict[str, Result]:
    """Measure detectors in alternating rounds.

    Args:
        models: By name, on their device.
        options: How to measure.

    Returns:
        By name: ``seconds`` of every round for a whole batch; ``parts``, the
        same by part, from runs of their own; ``peak_bytes`` beyond the
        weights, None for compiled code on a CPU, which hides its memory.
    """
    subjects = {name: Subject(m, options) for name, m in models.items()}
    seconds = timing.measure(
        {name: subject.run for name, subject in subjects.items()},
        options.repeats,
    )
    found = {}
    for name, subject in subjects.items():
        rounds = [subject.part_seconds() for _ in range(options.repeats)]
        peak = None
        if not (options.compile and options.device == 'cpu'):
            peak = timing.peak_bytes(subject.run, options.device)
        found[name] = {
            'seconds': seconds[name],
            'parts': {p: [r[p] for r in rounds] for p in rounds[0]},
            'peak_bytes': peak,
        }
    return found


def table(results: Mapping[str, Result], options: Options) -> str:
    """Lay results out for a terminal; ratios are against the first.

    Args:
        results: What `measure` returns.
        options: How they were measured.
    """
    first = next(iter(results.values()))
    header = ['config', 'time vs. first', 'images/s', 'ms per batch']
    rows = [[*header, *(f'{part} [ms]' for part in first['parts']), 'peak']]
    for name, result in results.items():
        whole = timing.Spread.of(result['seconds'])
        parts = (timing.Spread.of(s) for s in result['parts'].values())
        peak = result['peak_bytes']
        rows.append(
            [
                name,
                timing.ratio(result['seconds'], first['seconds']).text(),
                f'{options.batch_size / whole.median:.2f}',
                whole.text(1, 1e3),
                *(f'{1e3 * part.median:.1f}' for part in parts),
                'not counted' if peak is None else f'{peak / 1e6:.0f} MB',
            ]
        )
    return ascii_table(rows)
