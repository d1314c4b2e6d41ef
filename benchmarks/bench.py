# SPDX-License-Identifier: Apache-2.0
"""Models and inputs of a case; its variants as calls, and their counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.cases import (
    Case,
    Inputs,
    Outputs,
    backward,
    build,
    draw,
    run,
)
from benchmarks.variants import Variant
from lors_det.adamixer import AdaMixerDecoder
from lors_det.analysis import timing

Forward = Callable[[], Outputs]


class Bench:
    """Models and inputs of a case; every variant as a call.

    Args:
        case: What to measure.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.models: dict[str, AdaMixerDecoder] = {}
        self._drawn: dict[str, tuple[int, Inputs]] = {}
        self._steps: dict[Variant, Callable[[Inputs], Forward]] = {}

    def model(self, name: str) -> AdaMixerDecoder:
        """The model of a variant; variants of one name share it."""
        if name not in self.models:
            self.models[name] = build(self.case, name)
        return self.models[name]

    def inputs(self, model: str, number: int) -> Inputs:
        """Inputs of a round: the same numbers for all that read them."""
        shape = 'dense' if model == 'dense' else 'lors'
        if self._drawn.get(shape, (None,))[0] != number:
            self._drawn.pop(shape, None)
            self._drawn[shape] = number, draw(self.case, model, number)
        return self._drawn[shape][1].fresh()

    def prepare(self, variant: Variant) -> timing.Prepare:
        """A variant, as `timing.measure` wants it."""
        decoder = self.model(variant.model)

        def prepared(number: int) -> timing.Call:
            inputs = self.inputs(variant.model, number)
            decoder.zero_grad(set_to_none=True)
            return self.call(variant, inputs)

        return prepared

    def call(self, variant: Variant, inputs: Inputs) -> Forward:
        """One run of a variant: forward, and backward in training.

        Args:
            variant: What to run.
            inputs: Get gradients in training.
        """
        forward = self.forward(variant, inputs)

        def train() -> Outputs:
            outputs = forward()
            backward(outputs, inputs)
            return outputs

        return train if self.case.mode == 'train' else forward

    def forward(self, variant: Variant, inputs: Inputs) -> Forward:
        """The forward pass of a variant.

        Args:
            variant: What to run.
            inputs: What it reads.
        """
        if variant not in self._steps:
            decoder = self.model(variant.model)
            self._steps[variant] = _forward(
                self.case, variant, decoder, inputs
            )
        return self._steps[variant](inputs)

    def count(self, variant: Variant) -> dict[str, int | None]:
        """Multiply-adds and bytes of a variant.

        Parameters and their gradients are there before and are not counted;
        gradients of the inputs are. Bytes are counted of eager code alone.

        Args:
            variant: What to run.
        """
        case = self.case
        twin = Bench(replace(case, device='meta', dtype='float32'))
        eager = replace(variant, runner='eager', fused=False)
        found: dict[str, int | None] = {
            'macs': timing.multiply_adds(twin.prepare(eager)(0)),
            'peak_bytes': None,
            'saved_bytes': None,
        }
        if variant.runner == 'eager':
            call = self.prepare(variant)(0)
            decoder = self.model(variant.model)
            for parameter in decoder.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            found['peak_bytes'] = timing.peak_bytes(call, case.device)
            if case.mode == 'train':
                found['saved_bytes'] = self.saved_bytes(variant)
        return found

    def saved_bytes(self, variant: Variant) -> int:
        """Bytes that the forward pass keeps for the backward pass.

        Args:
            variant: What to run; the case is one in training.
        """
        decoder = self.model(variant.model)
        inputs = self.inputs(variant.model, 0)
        return timing.saved_bytes(
            self.forward(variant, inputs), decoder.parameters()
        )


def _forward(
    case: Case, variant: Variant, decoder: AdaMixerDecoder, first: Inputs
) -> Callable[[Inputs], Forward]:
    """From inputs to a forward pass over them, without inputs to prepare."""
    default = decoder.mixing.recompute
    grad = case.mode == 'train'

    def plain(tensors: dict[str, Tensor]) -> Outputs:
        return run(case, decoder, tensors, variant.plain)

    step = torch.compile(plain) if variant.runner == 'compiled' else plain

    def eager(inputs: Inputs) -> Forward:
        def forward() -> Outputs:
            decoder.mixing.recompute = variant.recompute or default
            decoder.mixing.fused = variant.fused
            try:
                with torch.set_grad_enabled(grad):
                    return step(inputs.tensors)
            finally:
                decoder.mixing.recompute = default
                decoder.mixing.fused = False

        return forward

    if variant.runner == 'graphed':
        return _graphed(eager, first)
    return eager


def _graphed(
    eager: Callable[[Inputs], Forward], static: Inputs
) -> Callable[[Inputs], Forward]:
    """Record a forward pass as a CUDA graph; inputs are copied into it."""
    static = static.fresh()
    static = Inputs({k: x.clone() for k, x in static.tensors.items()}, [])
    forward = eager(static)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = forward()

    def load(inputs: Inputs) -> Forward:
        for name, x in inputs.tensors.items():
            static.tensors[name].copy_(x)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    return load
