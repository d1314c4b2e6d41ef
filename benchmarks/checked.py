# SPDX-License-Identifier: Apache-2.0
"""Compare variants with the reference in float64, before they are timed."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.bench import Bench
from benchmarks.cases import (
    Case,
    Inputs,
    Outputs,
    backward,
    run,
)
from benchmarks.variants import VARIANTS, Variant
from docs import method as reference
from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.analysis import timing

#: Queries that the float64 reference mixes at once: it needs the memory.
CHUNK = 50
CHECK_SEED = 10**6
#: Queries that are compared if it is to be quick.
FEW = 20
#: Sums in another order err differently: the error of the plain formulation
#: in the same type, so many times.
TIMES_PLAIN = 10
#: And so much more, were the plain formulation exact.
FLOOR = 1e-5
#: Largest errors in float64: both are the same function, or they are not.
EXACT = 1e-6
#: Gradients jump where a point leaves a cell or a ReLU opens, and rounding
#: decides about points at the edge.
JUMPS = 0.02


class WrongResult(Exception):
    """A variant does not compute what it should: it is not timed."""


def run_case(case: Case, thorough: bool = True) -> dict[str, Any]:
    """Check all variants of a case, then count and time them.

    Args:
        case: What to measure.
        thorough: See `check`; if not, one round is enough to warm up.

    Returns:
        ``label``, ``case``, and by name in ``variants``: ``seconds`` of every
        round, ``macs``, ``peak_bytes``, ``saved_bytes`` (training only) and
        ``error``, the largest against float64. Bytes are None where nothing
        can count them.

    Raises:
        WrongResult: If a variant is not equal to the float64 reference.
    """
    bench = Bench(case)
    errors = check(bench, thorough)
    found: dict[str, dict[str, Any]] = {
        name: {'error': errors[name], **bench.count(VARIANTS[name])}
        for name in case.variants
    }
    seconds = timing.measure(
        {name: bench.prepare(VARIANTS[name]) for name in case.variants},
        case.repeats,
        warm_up=2 if thorough else 1,
        device=case.device,
    )
    for name, taken in seconds.items():
        found[name]['seconds'] = [float(f'{s:.4g}') for s in taken]
    return {'label': case.label, 'case': asdict(case), 'variants': found}


def check(bench: Bench, thorough: bool = True) -> dict[str, float]:
    """Compare every variant with the reference in float64.

    Once in float64, where outputs and gradients must be equal; then in the
    type of the case, where errors must be those of rounding.

    Args:
        bench: Models and inputs.
        thorough: If not, the mixing is not computed in float64 by ours, and
            compared for the first `FEW` queries alone: queries are mixed
            independently, and no other gets a gradient.

    Returns:
        The largest error of an output of every variant, in the type of the
        case: norm of the difference over that of the reference.

    Raises:
        WrongResult: If an error is too large.
    """
    case = bench.case
    thorough = thorough or case.part != 'mixing'
    exact = Bench(replace(case, dtype='float64'))
    errors = {}
    variants = {name: VARIANTS[name] for name in case.variants}
    for model in dict.fromkeys(v.model for v in variants.values()):
        decoder = bench.model(model)
        exact.models[model] = copy.deepcopy(decoder).double()
        inputs = bench.inputs(model, CHECK_SEED)
        some = inputs if thorough else _first(inputs)
        wide = some.fresh(torch.float64)
        expected = _plain(exact.case, exact.models[model], wide)
        rounding = {
            what: TIMES_PLAIN * error
            + (JUMPS if what.startswith('gradient') else FLOOR)
            for what, error in _errors(
                _plain(case, decoder, some.fresh()), expected
            ).items()
        }
        for name, variant in variants.items():
            if variant.model != model:
                continue
            where = f'{name}, {case.label}'
            if thorough and not variant.plain:
                # Its kernel is not for float64: it is checked below.
                eager = replace(variant, runner='eager', fused=False)
                found = _errors(_run(exact, eager, wide.fresh()), expected)
                equal = dict.fromkeys(expected, EXACT)
                _compare(f'{where}, in float64', found, equal)
            results = _run(bench, variant, inputs.fresh())
            if not thorough:
                results = {k: _cut(k, x) for k, x in results.items()}
            found = _errors(results, expected)
            _compare(where, found, rounding)
            outputs = [e for n, e in found.items() if n.startswith('output')]
            errors[name] = float(f'{max(outputs):.2g}')
        exact.models.clear()
        decoder.zero_grad(set_to_none=True)
    return errors


def _first(inputs: Inputs) -> Inputs:
    """The first queries of the first image; the others get no gradient.

    Args:
        inputs: Of the mixing; the weights of other queries become zero.
    """
    for name, x in enumerate(inputs.weights):
        inputs.weights[name] = torch.zeros_like(x)
        inputs.weights[name][:1, :FEW] = x[:1, :FEW]
    tensors = {
        name: x.detach()[:1, :FEW].requires_grad_(x.requires_grad)
        for name, x in inputs.tensors.items()
    }
    return Inputs(tensors, [x[:1, :FEW] for x in inputs.weights])


def _cut(name: str, x: Tensor) -> Tensor:
    """What belongs to the first queries of an output or a gradient."""
    of_queries = ('output', 'gradient of content', 'gradient of sampled')
    return x[:1, :FEW] if name.startswith(of_queries) else x


def _compare(
    where: str, found: dict[str, float], bounds: dict[str, float]
) -> None:
    for what, error in found.items():
        bound = bounds[what]
        if not error <= bound:
            raise WrongResult(
                f'{where}: {what} differs from the float64 reference by '
                f'{error:.1e} of its norm, more than {bound:.1e}; not timed'
            )


def _run(bench: Bench, variant: Variant, inputs: Inputs) -> dict[str, Tensor]:
    decoder = bench.model(variant.model)
    decoder.zero_grad(set_to_none=True)
    outputs = bench.call(variant, inputs)()
    return _named(outputs, decoder, inputs)


def _plain(
    case: Case, decoder: AdaMixerDecoder, inputs: Inputs
) -> dict[str, Tensor]:
    """Outputs and gradients of the reference, with little memory."""
    grad = case.mode == 'train'
    decoder.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(grad):
        outputs = run(case, decoder, inputs.tensors, True, mix_in_chunks)
        if grad:
            backward(outputs, inputs)
    return _named(outputs, decoder, inputs)


def _named(
    outputs: Outputs, decoder: AdaMixerDecoder, inputs: Inputs
) -> dict[str, Tensor]:
    named = {f'output {i}': x.detach() for i, x in enumerate(outputs)}
    leaves = {**dict(decoder.named_parameters()), **inputs.leaves()}
    for name, x in leaves.items():
        if x.grad is not None:
            named[f'gradient of {name}'] = x.grad
    return named


def _errors(
    found: dict[str, Tensor], exact: dict[str, Tensor]
) -> dict[str, float]:
    if found.keys() != exact.keys():
        raise WrongResult(f'only one has {sorted(found.keys() ^ exact)}')
    return {
        name: float(
            (x.double() - exact[name]).norm()
            / exact[name].norm().clamp(min=1e-30)
        )
        for name, x in found.items()
    }


def mix_in_chunks(
    mixing: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
) -> Tensor:
    """`reference.mix` for some queries at a time, kernels never kept."""
    rows = zip(
        sampled.flatten(0, 1).split(CHUNK),
        content.flatten(0, 1).split(CHUNK),
        strict=True,
    )
    mixed = [
        checkpoint(
            reference.mix, mixing, s[None], c[None], stage, use_reentrant=False
        )[0]
        for s, c in rows
    ]
    return torch.cat(mixed).view_as(content)
