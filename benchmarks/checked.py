# SPDX-License-Identifier: Apache-2.0
"""Compare variants with docs/method.py in float64, then measure them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import Bench, Call
from benchmarks.cases import HALF, VARIANTS, Case, Variant
from lors_det.analysis import timing
from lors_det.analysis.costs import flop_counter

#: Largest error of an output and of a gradient: the norm of the difference
#: over the norm. Gradients jump where rounding moves a point to another cell
#: or opens a ReLU; one that is missing or wrong has an error of about 1. In 16
#: bits single ones are noise: the bound is that of their median.
BOUNDS = {
    'float64': (1e-6, 1e-6),
    'float32': (1e-4, 0.05),
    'bfloat16': (0.1, 0.5),
    'float16': (0.02, 0.3),
}


class WrongResult(Exception):
    """A variant does not compute what it should: it is not timed."""


def run_case(case: Case) -> dict[str, Any]:
    """Check all variants of a case, then count and time them.

    Args:
        case: What to measure.

    Returns:
        ``label``, ``case``, and by name in ``variants``: ``seconds`` of every
        round, ``macs``, ``peak_bytes`` (None where nothing can count them)
        and ``error``, the largest of an output.

    Raises:
        WrongResult: If a variant differs from docs/method.py.
    """
    torch.compiler.reset()
    calls: dict[str, Call] = {}
    found: dict[str, dict[str, Any]] = {name: {} for name in case.variants}
    for model in {VARIANTS[name].model: None for name in case.variants}:
        bench = Bench.build(case, model)
        exact = bench.in_float64()
        expected = exact.results(exact.call('plain'))
        for name in case.variants:
            if VARIANTS[name].model != model:
                continue
            way = VARIANTS[name].way
            if way != 'plain':
                results = exact.results(exact.call(_eager(way)))
                compare(f'{name} in float64', results, expected, 'float64')
            calls[name] = bench.call(way)
            results = bench.results(calls[name])
            error = compare(name, results, expected, case.dtype)
            found[name]['error'] = float(f'{error:.2g}')
            found[name]['macs'] = multiply_adds(case, VARIANTS[name])
            found[name]['peak_bytes'] = None
            if way != 'graphed' and (way, case.device) != ('compiled', 'cpu'):
                bench.forget_gradients()
                peak = timing.peak_bytes(calls[name], case.device)
                found[name]['peak_bytes'] = peak
        del exact, expected, results
    for name, seconds in timing.measure(calls, case.rounds).items():
        found[name]['seconds'] = [float(f'{s:.4g}') for s in seconds]
    return {'label': case.label, 'case': asdict(case), 'variants': found}


def multiply_adds(case: Case, variant: Variant) -> int:
    """Count the multiply-adds of matrix products, on the meta device.

    Args:
        case: Shape, part and mode.
        variant: Counted as if it ran eagerly, or as docs/method.py says.
    """
    on_meta = replace(case, device='meta', dtype='float32')
    call = Bench.build(on_meta, variant.model).call(_eager(variant.way))
    with flop_counter() as counter:
        call()
    return int(counter.get_total_flops()) // 2


def compare(
    name: str,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    dtype: str,
) -> float:
    """Compare outputs and gradients with those of docs/method.py.

    Args:
        name: Of the variant, for the error message.
        found: Its outputs and gradients.
        expected: Those of docs/method.py in float64.
        dtype: Which bounds to apply.

    Returns:
        The largest error of an output.

    Raises:
        WrongResult: If an error is beyond its bound.
    """
    if found.keys() != expected.keys():
        missing = sorted(found.keys() ^ expected.keys())
        raise WrongResult(f'{name}: only one of two has {missing}')
    outputs: dict[str, float] = {}
    gradients: dict[str, float] = {}
    for what, exact in expected.items():
        error = relative_error(found[what], exact)
        (outputs if what.startswith('output') else gradients)[what] = error
    if dtype in HALF and gradients:
        median = float(np.median([*gradients.values()]))
        gradients = {'the median gradient': median}
    for errors, bound in zip((outputs, gradients), BOUNDS[dtype], strict=True):
        for what, error in errors.items():
            if not error <= bound:
                raise WrongResult(
                    f'{name}: {what} differs from docs/method.py in float64 '
                    f'by {error:.1e} of its norm, more than {bound:.1e}; not '
                    'timed'
                )
    return max(outputs.values())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm."""
    exact = expected.double()
    difference = (found.double() - exact).norm()
    return float(difference / exact.norm().clamp(min=1e-30))


def _eager(way: str) -> str:
    """Return the way to compute the same without compiler or recording."""
    return 'eager' if way in ('compiled', 'graphed') else way
