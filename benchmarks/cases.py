# SPDX-License-Identifier: Apache-2.0
"""What is measured: shapes, models, random inputs, and how each is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from docs import method as reference
from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.lors import fold

CONFIG_DIR = Path(__file__).parents[1] / 'configs' / '_base_' / 'models'
PARTS = ('mixing', 'decoder')
MODES = ('forward', 'train')
DTYPES = ('float32', 'bfloat16')
Outputs = list[Tensor]


@dataclass(frozen=True)
class Case:
    """One shape and the variants that are compared at it.

    Args:
        part: ``mixing`` (of all stages) or the whole ``decoder``.
        mode: ``forward``, or ``train``: forward and backward.
        variants: Names out of `VARIANTS`; ratios are against the first.
        device: Where it runs.
        dtype: ``bfloat16`` is autocast; the forward alone then has its
            matrices in bfloat16 too.
        batch: Number of images B.
        queries: Number of queries N of an image.
        stages: Number of stages.
        rank: Rank r of the private kernels.
        num_param_groups: K of every stage; None for the default, rising.
        image_size: Height and width in pixels, for the decoder.
        repeats: Rounds that count.
    """

    part: str
    mode: str
    variants: tuple[str, ...]
    device: str = 'cpu'
    dtype: str = 'float32'
    batch: int = 1
    queries: int = 100
    stages: int = 6
    rank: int = 16
    num_param_groups: int | None = None
    image_size: tuple[int, int] = (800, 1344)
    repeats: int = 15

    @property
    def label(self) -> str:
        """Short text that tells cases apart."""
        words = [
            f'{self.part} {self.mode}',
            f'batch {self.batch}',
            f'{self.queries} queries',
            f'{self.stages} stages',
        ]
        if self.rank != Case.rank:
            words.append(f'rank {self.rank}')
        if self.num_param_groups is not None:
            words.append(f'K {self.num_param_groups}')
        return ', '.join([*words, self.dtype, self.device.split(':')[0]])


@cache
def _base(name: str) -> dict[str, Any]:
    decoder = Config.fromfile(CONFIG_DIR / name).model.decoder.to_dict()
    decoder.pop('type')
    settings: dict[str, Any] = decoder
    return settings


def settings(case: Case, model: str) -> dict[str, Any]:
    """Arguments of the decoder, from the configs that users train.

    Args:
        case: Number of stages, rank and K.
        model: See `Variant`.
    """
    if model == 'dense':
        found = copy.deepcopy(_base('adamixer_r50.py'))
    else:
        found = copy.deepcopy(_base('../../lors/lors-adamixer_r50_1x_coco.py'))
        stack = found['stacks']['mixing_kernels']
        stack['rank'] = case.rank
        if case.num_param_groups is not None:
            stack['num_param_groups'] = case.num_param_groups
        if model == 'dense-g2':
            found['stacks'] = {}
    return {**found, 'num_stages': case.stages}


def build(case: Case, model: str) -> AdaMixerDecoder:
    """A decoder with no weight left at an initial zero, on the device.

    The last few are kept: cases of a sweep often have the same.

    Args:
        case: Shape, device and type.
        model: See `Variant`.
    """
    same = Case(
        'decoder', case.mode, (), case.device, case.dtype, stages=case.stages
    )
    if not model.startswith('dense'):
        groups = case.num_param_groups
        same = replace(same, rank=case.rank, num_param_groups=groups)
    if case.device == 'meta':
        return _build.__wrapped__(same, model)
    return _build(same, model)


@lru_cache(maxsize=2)
def _build(case: Case, model: str) -> AdaMixerDecoder:
    with torch.random.fork_rng(), torch.device(case.device):
        torch.manual_seed(0)
        decoder = AdaMixerDecoder(**settings(case, model))
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                # Moving points far over noise, stage after stage, would
                # amplify rounding until nothing could be compared.
                moves = name.startswith(('sampling', 'heads.reg'))
                alpha = 0.002 if moves else 0.02
                parameter.add_(torch.randn_like(parameter), alpha=alpha)
    if model.startswith('folded'):
        fold(decoder, generators=model == 'folded-all')
    if case.dtype == 'bfloat16' and case.mode == 'forward':
        for parameter in decoder.parameters():
            if parameter.dim() > 1:  # autocast runs norms in float32
                parameter.data = parameter.data.bfloat16()
    decoder.train(case.mode == 'train')
    if case.mode == 'forward':
        decoder.requires_grad_(False)
    return decoder


@dataclass(frozen=True)
class Inputs:
    """What a variant reads, and the gradients that training starts from.

    Args:
        tensors: By name; those that get a gradient in training require it.
        weights: Gradients of the outputs, in their order.
    """

    tensors: dict[str, Tensor]
    weights: list[Tensor]

    def leaves(self) -> dict[str, Tensor]:
        """Those that get a gradient."""
        return {k: x for k, x in self.tensors.items() if x.requires_grad}

    def fresh(self, dtype: torch.dtype | None = None) -> Inputs:
        """The same numbers without gradients, in another type if given."""
        return Inputs(
            {
                k: x.detach()
                .to(dtype or x.dtype)
                .requires_grad_(x.requires_grad)
                for k, x in self.tensors.items()
            },
            [x.to(dtype or x.dtype) for x in self.weights],
        )


def draw(case: Case, model: str, seed: int) -> Inputs:
    """Random inputs of a model.

    Args:
        case: Shape, device and type.
        model: See `Variant`.
        seed: The same seed gives the same numbers.
    """
    device = torch.device(case.device)
    generator = None
    if device.type != 'meta':
        generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def uniform(low: float, high: float) -> Tensor:
        shape = (case.batch, case.queries)
        x = torch.rand(shape, generator=generator, device=device)
        return low + (high - low) * x

    shape = settings(case, model)
    batch, queries, dims = case.batch, case.queries, shape['embed_dims']
    tensors = {'content': normal(batch, queries, dims)}
    if case.part == 'mixing':
        groups = shape['num_groups']
        for stage in range(case.stages):
            tensors[f'sampled.{stage}'] = normal(
                batch, queries, groups, shape['in_points'], dims // groups
            )
        weights = [normal(batch, queries, dims)]
    else:
        height, width = case.image_size
        for level, stride in enumerate(shape['strides']):
            # Ceiling, as a padded convolution gives.
            sides = (-(-height // stride), -(-width // stride))
            feat = normal(batch, dims, *sides)
            tensors[f'feats.{level}'] = feat.to(getattr(torch, case.dtype))
        weights = []
        for _ in range(case.stages):
            weights.append(normal(batch, queries, shape['num_classes']))
            weights.append(normal(batch, queries, 4) / 100)  # pixels
    for x in tensors.values():
        x.requires_grad_(case.mode == 'train')
    if case.part == 'decoder':
        z, r = uniform(4, 9), uniform(-1, 1)
        xy = uniform(0, case.image_size[1]), uniform(0, case.image_size[0])
        tensors['xyzr'] = torch.stack([*xy, z, r], dim=-1)
    return Inputs(tensors, weights)


def run(
    case: Case,
    decoder: AdaMixerDecoder,
    tensors: Mapping[str, Tensor],
    plain: bool = False,
    mix: reference.Mix = reference.mix,
) -> Outputs:
    """Run a part of the decoder.

    Args:
        case: Which part, and the type to compute in.
        decoder: The model.
        tensors: Its inputs.
        plain: Whether the reference runs, or our code.
        mix: How the reference mixes.

    Returns:
        Mixing: content after the last stage. Decoder: class logits and boxes
        of every stage.
    """
    content = tensors['content']
    device, half = case.device.split(':')[0], case.dtype == 'bfloat16'
    context = torch.autocast(device, torch.bfloat16) if half else nullcontext()
    with context:
        if case.part == 'mixing':
            step = mix if plain else AdaptiveMixing.forward
            for stage in range(case.stages):
                sampled = tensors[f'sampled.{stage}']
                content = step(decoder.mixing, sampled, content, stage)
            return [content]
        feats = [x for name, x in tensors.items() if name.startswith('feats')]
        if plain:
            outputs = reference.decode(
                decoder, feats, content, tensors['xyzr'], mix
            )
        else:
            outputs = decoder(feats, content, tensors['xyzr'])
        return [x for out in outputs for x in (out.cls_logits, out.bboxes)]


def backward(outputs: Outputs, inputs: Inputs) -> None:
    """Run the backward pass of what `run` gave."""
    torch.autograd.backward(
        outputs,
        [w.to(x.dtype) for w, x in zip(inputs.weights, outputs, strict=True)],
    )
