# SPDX-License-Identifier: Apache-2.0
"""A decoder with random weights and inputs, to run in each way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.cases import HALF, Case
from docs import method
from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.lors import fold

Outputs = list[Tensor]
Call = Callable[[], Outputs]


@dataclass(frozen=True)
class Bench:
    """A decoder, and what it reads.

    Args:
        case: Shape, part and mode.
        decoder: With the weights.
        inputs: By name; those that require it get gradients in training.
        gradients: Of the outputs, in their order: training starts from them.
    """

    case: Case
    decoder: AdaMixerDecoder
    inputs: dict[str, Tensor]
    gradients: list[Tensor]

    @classmethod
    def build(cls, case: Case, model: str) -> Bench:
        """Draw weights and inputs: always the same numbers.

        Args:
            case: Shape, part, mode, device and type.
            model: See `benchmarks.cases.Variant`.
        """
        with torch.random.fork_rng(), torch.device(case.device):
            torch.manual_seed(0)
            decoder = build_decoder(case, model)
            torch.manual_seed(1)
            return cls(case, decoder, *draw_inputs(case, model))

    def in_float64(self) -> Bench:
        """Return a copy that computes in float64."""
        return Bench(
            replace(self.case, dtype='float64'),
            copy.deepcopy(self.decoder).double(),
            {
                name: x.detach().double().requires_grad_(x.requires_grad)
                for name, x in self.inputs.items()
            },
            [x.double() for x in self.gradients],
        )

    def call(self, way: str) -> Call:
        """Return a call that runs the forward pass, and backward in training.

        Args:
            way: See `benchmarks.cases.Variant`.

        Returns:
            A call without arguments that returns the result of `forward`.
        """

        def forward() -> Outputs:
            return self.forward(plain=way == 'plain')

        if way == 'compiled':
            forward = torch.compile(forward, dynamic=False)

        def run() -> Outputs:
            self.decoder.mixing.with_cp = way == 'with_cp'
            if self.case.mode == 'forward':
                with torch.no_grad():
                    return forward()
            self.forget_gradients()
            outputs = forward()
            pairs = zip(self.gradients, outputs, strict=True)
            torch.autograd.backward(outputs, [g.to(x.dtype) for g, x in pairs])
            return outputs

        return graphed(run) if way == 'graphed' else run

    def forward(self, plain: bool) -> Outputs:
        """Run the mixing of all stages, or the decoder.

        Args:
            plain: Whether docs/method.py computes, or the package.

        Returns:
            Mixing: content after the last stage. Decoder: class logits and
            boxes of every stage.
        """
        case, decoder, inputs = self.case, self.decoder, self.inputs
        # A float64 copy is the oracle: it must fit, and is not timed.
        mix = method.mix
        if case.dtype == 'float64':
            mix = partial(checkpoint, mix, use_reentrant=False)
        device, content = case.device.split(':')[0], inputs['content']
        half = getattr(torch, case.dtype) if case.dtype in HALF else None
        with torch.autocast(device, half) if half else nullcontext():
            if case.part == 'mixing':
                step = mix if plain else AdaptiveMixing.forward
                for stage in range(case.stages):
                    sampled = inputs[f'sampled.{stage}']
                    content = step(decoder.mixing, sampled, content, stage)
                return [content]
            feats = [inputs[k] for k in inputs if k.startswith('feats')]
            read = (feats, content, inputs['xyzr'])
            stages = (
                method.decode(decoder, *read, mix) if plain else decoder(*read)
            )
            return [x for s in stages for x in (s.cls_logits, s.bboxes)]

    def results(self, call: Call) -> dict[str, Tensor]:
        """Run a call; return outputs, and all gradients that there are."""
        found = {f'output {i}': x.detach() for i, x in enumerate(call())}
        leaves = {**dict(self.decoder.named_parameters()), **self.inputs}
        for name, x in leaves.items():
            if x.grad is not None:
                found[f'gradient of {name}'] = x.grad
        return found

    def forget_gradients(self) -> None:
        """Free all gradients."""
        for x in [*self.decoder.parameters(), *self.inputs.values()]:
            x.grad = None


def build_decoder(case: Case, model: str) -> AdaMixerDecoder:
    """Build a decoder that has no weight left at an initial zero."""
    decoder = AdaMixerDecoder(**case.settings(model))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            # Moving points far over noise, stage after stage, would amplify
            # rounding until nothing could be compared.
            moves = name.startswith(('sampling', 'heads.reg'))
            noise = torch.randn_like(parameter)
            parameter.add_(noise, alpha=0.002 if moves else 0.02)
    if model.startswith('folded'):
        fold(decoder, generators=model == 'folded-all')
    if case.mode == 'forward':
        decoder.eval().requires_grad_(False)
        if case.dtype in HALF:
            for parameter in decoder.parameters():
                if parameter.dim() > 1:  # autocast runs norms in float32
                    parameter.data = parameter.data.to(
                        getattr(torch, case.dtype)
                    )
    return decoder


def draw_inputs(
    case: Case, model: str
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Draw what a decoder reads, and the gradients of its outputs.

    Args:
        case: Shape, part and mode.
        model: See `benchmarks.cases.Variant`.

    Returns:
        See `Bench`.
    """
    settings = case.settings(model)
    dims, shape = settings['embed_dims'], (case.batch, case.queries)
    inputs = {'content': torch.randn(*shape, dims)}
    if case.part == 'mixing':
        groups, points = settings['num_groups'], settings['in_points']
        for stage in range(case.stages):
            inputs[f'sampled.{stage}'] = torch.randn(
                *shape, groups, points, dims // groups
            )
        gradients = [torch.randn(*shape, dims)]
    else:
        for level, stride in enumerate(settings['strides']):
            # Rounded up, as by a padded convolution.
            sides = (-(-side // stride) for side in case.image_size)
            feat = torch.randn(case.batch, dims, *sides)
            inputs[f'feats.{level}'] = feat.to(getattr(torch, case.dtype))
        gradients = []
        for _ in range(case.stages):
            gradients.append(torch.randn(*shape, settings['num_classes']))
            gradients.append(torch.randn(*shape, 4) / 100)  # of pixels
    if case.mode == 'train':
        for x in inputs.values():
            x.requires_grad_()
    if case.part == 'decoder':
        height, width = case.image_size
        low = torch.tensor([0.0, 0.0, 4.0, -1.0])
        high = torch.tensor([width, height, 9.0, 1.0])
        inputs['xyzr'] = low + (high - low) * torch.rand(*shape, 4)
    return inputs, gradients


def graphed(run: Call) -> Call:
    """Record a call as a CUDA graph, as torch's notes on graphs say.

    Args:
        run: Reads and returns the same tensors each time. Gradients that it
            leaves must be new ones: of the graph's memory.

    Returns:
        A call that replays the graph, and returns what it has written.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Detached: parameters remember the stream of an autograd graph that
        # is alive, and the next backward pass would wait for this one.
        outputs = [x.detach() for x in run()]

    def replay() -> Outputs:
        graph.replay()
        return outputs

    return replay
