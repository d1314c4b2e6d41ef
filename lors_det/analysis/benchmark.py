# SPDX-License-Identifier: Apache-2.0
"""Time whole detectors side by side, part by part: tools/benchmark.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.registry import init_default_scope
from torch import nn
from torch.utils.benchmark import timer

from lors_det.analysis import timing
from lors_det.analysis.tables import ascii_table
from lors_det.errors import UsageError
from lors_det.precision import autocast, remark
from lors_det.predict import check_device

NUM_BOXES = 5  # of an image
Result = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of a measurement of detectors.

    Args:
        batch_size: Images B of a batch.
        image_size: Height and width in pixels.
        device: Where to run.
        dtypes: Types to compute in; those of 16 bits are mixed precision.
        train: Whether to measure losses and gradients, or predictions.
        compile: Whether to set the key ``compile`` of the models.
        repeats: Number of rounds.

    Raises:
        UsageError: If a value is wrong, or the device is not there.
    """

    batch_size: int = 1
    image_size: tuple[int, int] = (800, 1344)
    device: str = 'cpu'
    dtypes: tuple[str, ...] = ('float32',)
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


def build(
    name: str, model_cfg: Mapping[str, Any], options: Options
) -> nn.Module:
    """Build a detector with random weights: time does not depend on them.

    Args:
        name: Of the config, for the error message.
        model_cfg: The config's ``model``.
        options: Device, mode, and whether to compile.

    Raises:
        UsageError: If it is no detector of this project.
    """
    if model_cfg.get('type') != 'AdaMixer':
        raise UsageError(
            f'{name}: model.type={model_cfg.get("type")!r}: expected '
            "'AdaMixer'"
        )
    settings = {**copy.deepcopy(model_cfg), 'compile': options.compile}
    init_default_scope('mmdet')
    model: nn.Module = MODELS.build(settings)
    return model.to(options.device).train(options.train)


def measure(
    models: Mapping[str, nn.Module], options: Options
) -> dict[str, Result]:
    """Measure detectors on random images, in alternating rounds.

    Args:
        models: By name, on their device.
        options: How to measure.

    Returns:
        By name, and type if there are several: ``seconds`` of every round for
        a whole batch; ``parts``, the same by part, timed in other runs and
        not for compiled models; ``peak_bytes`` beyond the weights, None for
        compiled code on a CPU, whose memory cannot be counted.
    """
    calls, owners = {}, {}
    for dtype in options.dtypes:
        if dtype != 'float32':
            remark(dtype, options.device)
    for name, model in models.items():
        batch = random_batch(model, options)
        for dtype in options.dtypes:
            label = f'{name} {dtype}' if options.dtypes[1:] else name
            calls[label] = partial(_run, model, batch, options, dtype)
            owners[label] = model
    seconds = timing.measure(calls, options.repeats)
    found = {}
    for name, call in calls.items():
        rounds: list[dict[str, float]] = [{}]
        if not options.compile:
            rounds = [
                _part_seconds(owners[name], call, options.train)
                for _ in range(options.repeats)
            ]
        peak = None
        if not (options.compile and options.device == 'cpu'):
            peak = timing.peak_bytes(call, options.device)
        found[name] = {
            'seconds': seconds[name],
            'parts': {p: [r[p] for r in rounds] for p in rounds[0]},
            'peak_bytes': peak,
        }
    return found


def random_batch(model: Any, options: Options) -> dict[str, Any]:
    """Draw images with boxes and labels, as a data loader returns them.

    Args:
        model: The detector.
        options: Number and size of the images.
    """
    number = options.batch_size
    batch: dict[str, Any] = demo_mm_inputs(
        number,
        [(3, *options.image_size)] * number,
        num_items=[NUM_BOXES] * number,
        num_classes=model.decoder.num_classes + 1,
    )
    for sample in batch['data_samples']:
        sample.gt_instances.labels -= 1  # they are drawn from 1
    return batch


def _run(
    model: Any, batch: dict[str, Any], options: Options, dtype: str
) -> None:
    """Compute the gradients, or the detections, of a batch."""
    model.zero_grad(set_to_none=True)
    context = autocast(dtype, options.device)
    with torch.set_grad_enabled(options.train), context:
        if not options.train:
            model.test_step(batch)
            return
        data = model.data_preprocessor(batch, True)
        losses = model(**data, mode='loss')
    model.parse_losses(losses)[0].backward()


def _part_seconds(
    model: nn.Module, call: Callable[[], object], train: bool
) -> dict[str, float]:
    """Time the parts of a call, with a wait for the device after each."""
    times = {'start': timer()}

    def note(part: str, *_: object) -> None:
        times[part] = timer()

    hooks = [
        model.get_submodule(part).register_forward_hook(partial(note, part))
        for part in ('backbone', 'neck', 'decoder', 'criterion')
    ]
    call()
    note('backward' if train else 'post-processing')
    for hook in hooks:
        hook.remove()
    return {
        part: end - start
        for (_, start), (part, end) in pairwise(times.items())
    }


def table(results: Mapping[str, Result], options: Options) -> str:
    """Write results as a table; ratios are against the first.

    Args:
        results: Result of `measure`.
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
