# SPDX-License-Identifier: Apache-2.0
"""Measure the error of weights by what layers do to their inputs.

An error E of a weight costs nothing where no input looks: what it does is
the mean of ``||E x||^2`` over the inputs x, which is ``tr(E M E^T)`` with
their second moment ``M = mean(x x^T)``. If X holds n inputs as rows,
``M = X^T X / n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lors_det.lors.stacks import AdaptiveStack, Stack

#: Share of a moment's mean eigenvalue that is added to all of its
#: eigenvalues, for what the recorded inputs did not show.
DAMPING = 0.01


@contextmanager
def record_inputs(
    stacks: Mapping[str, Stack], rows: int, seed: int = 0
) -> Iterator[dict[str, list[Tensor]]]:
    """Record inputs of every layer of stacks while a model runs.

    Args:
        stacks: Stacks of the model, by name.
        rows: Largest number of inputs that are kept of one call, drawn at
            random; a large layer (AdaMixer's output projection has 32,768
            inputs) would fill the memory.
        seed: Of the draw.

    Yields:
        For every stack, by its name, what its N layers were given: (n, in)
        for a `StackedLinear`; (n, C + 1) for an `AdaptiveStack`, the queries
        with a one behind them, which stands for the bias of the generator.
        Filled when the block ends.
    """
    found: dict[str, list[Tensor]] = {}
    parts: dict[str, list[list[Tensor]]] = {
        name: [[] for _ in range(stack.num_layers)]
        for name, stack in stacks.items()
    }
    generator = torch.Generator().manual_seed(seed)

    def record(name: str) -> Callable[..., None]:
        def hook(stack: Stack, args: Any, kwargs: Any) -> None:
            x, layer = _arguments(*args, **kwargs)
            x = x.detach().flatten(0, -2)
            kept = torch.randperm(len(x), generator=generator)[:rows]
            x = x[kept.to(x.device)]
            if isinstance(stack, AdaptiveStack):
                x = F.pad(x, (0, 1), value=1.0)
            parts[name][layer].append(x)

        return hook

    handles = [
        stack.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, stack in stacks.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found.update(
        (name, [torch.cat(part) for part in layers])
        for name, layers in parts.items()
    )


def _arguments(x: Tensor, layer: int) -> tuple[Tensor, int]:
    """Sort the arguments of a stack's forward."""
    return x, layer


class WeightError:
    """The error of N weights itself, by the squares of their entries."""

    def whiten(self, layer: int, weight: Tensor) -> Tensor:
        """Return what has the sum of squares that an error counts as.

        Args:
            layer: Index of the layer.
            weight: (..., in).

        Returns:
            (..., m); linear in the weight.
        """
        return weight

    def unwhiten(self, layer: int, whitened: Tensor) -> Tensor:
        """Undo `whiten`."""
        return whitened

    def mean(self, whitened: Tensor) -> Tensor:
        """Return the one weight that is nearest to N weights.

        Args:
            whitened: (N, ..., m), the weights after `whiten`.

        Returns:
            (..., in).
        """
        return whitened.mean(0)


class OutputError(WeightError):
    """Errors of the outputs for given inputs, by those of N weights.

    It is relative to the outputs: ``||E_i X_i^T||^2 / ||W_i X_i^T||^2``.

    Args:
        inputs: For every layer (n, in) inputs as rows.
        weights: (N, ..., in).

    Raises:
        ValueError: If the inputs do not fit the weights, or are not finite.
    """

    def __init__(self, inputs: Sequence[Tensor], weights: Tensor) -> None:
        shapes = sorted({tuple(x.shape) for x in inputs})
        expected = f'{len(weights)} of one shape (n, {weights.shape[-1]})'
        if (
            len(inputs) != len(weights)
            or len(shapes) != 1
            or shapes[0][1:] != weights.shape[-1:]
            or not shapes[0][0]
        ):
            raise ValueError(
                f'inputs: {len(inputs)} of {shapes}: expected {expected}'
            )
        rows = []
        self.dampings: list[float] = []
        for x, weight in zip(inputs, weights, strict=True):
            x = x.to(weight)
            if not x.isfinite().all():
                raise ValueError('inputs: expected finite numbers')
            outputs = (weight @ x.mT).norm()
            x = x / (outputs if outputs > 0 else 1)
            mean = x.square().sum().item() / x.shape[1]
            damping = DAMPING * (mean or 1)
            if len(x) >= x.shape[1]:
                # A square root of the moment is smaller than all inputs.
                eye = torch.eye(x.shape[1]).to(x) * math.sqrt(damping)
                x = torch.linalg.qr(torch.cat([x, eye]), mode='r').R
                damping = 0.0
            rows.append(x)
            self.dampings.append(damping)
        self.rows = torch.stack(rows)
        self.solve = _solver(self.rows.flatten(0, 1), sum(self.dampings))

    def whiten(self, layer: int, weight: Tensor) -> Tensor:
        """See `WeightError`."""
        seen = weight @ self.rows[layer].mT
        damping = self.dampings[layer]
        if not damping:
            return seen
        return torch.cat([seen, math.sqrt(damping) * weight], -1)

    def unwhiten(self, layer: int, whitened: Tensor) -> Tensor:
        """See `WeightError`."""
        rows, damping = self.rows[layer], self.dampings[layer]
        return _solver(rows, damping)(self._transposed(layer, whitened))

    def mean(self, whitened: Tensor) -> Tensor:
        """See `WeightError`."""
        return self.solve(
            torch.stack(
                [self._transposed(i, each) for i, each in enumerate(whitened)]
            ).sum(0)
        )

    def _transposed(self, layer: int, whitened: Tensor) -> Tensor:
        """Apply the transpose of `whiten`, (..., m) to (..., in)."""
        rows, damping = self.rows[layer], self.dampings[layer]
        result = whitened[..., : len(rows)] @ rows
        if damping:
            result += math.sqrt(damping) * whitened[..., len(rows) :]
        return result


def _solver(rows: Tensor, damping: float) -> Callable[[Tensor], Tensor]:
    """Return how to multiply with the inverse of ``rows^T rows + damping``.

    Args:
        rows: (m, in).
        damping: Above 0 where m < in.
    """
    m, size = rows.shape
    if m >= size:
        gram = rows.mT @ rows
        gram.diagonal().add_(damping)
        factor = torch.linalg.cholesky(gram)
        return lambda x: torch.cholesky_solve(
            x.reshape(-1, size).mT, factor
        ).mT.reshape(x.shape)
    # The identity of Woodbury: a system of the smaller size m.
    gram = rows @ rows.mT
    gram.diagonal().add_(damping)
    factor = torch.linalg.cholesky(gram)

    def solve(x: Tensor) -> Tensor:
        flat = x.reshape(-1, size)
        low = torch.cholesky_solve((flat @ rows.mT).mT, factor).mT
        return ((flat - low @ rows) / damping).reshape(x.shape)

    return solve
