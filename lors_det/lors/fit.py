# SPDX-License-Identifier: Apache-2.0
"""Fit a shared matrix and low-rank residuals to given matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lors_det.lors.inputs import OutputError, WeightError
from lors_det.lors.stacks import StackedLinear


@dataclass(frozen=True)
class FitReport:
    """Errors of a fit against the weights that it was made from.

    Args:
        ranks: Rank of every layer, ``K x r`` for generators.
        errors: Relative error of every layer, in the Frobenius norm; with
            inputs, that of its outputs.
        history: Sum of the squared errors of all layers after every
            iteration; it never rises.
        curves: For every layer the relative errors of rank 0, 1, 2, ... with
            the shared part of this fit; for generators of one term (K = 1)
            by a truncated decomposition, which a fit of that rank improves.
    """

    ranks: tuple[str, ...]
    errors: tuple[float, ...]
    history: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]

    def rank_for(self, error: float) -> list[int | None]:
        """Return the smallest rank of every layer for an error.

        Args:
            error: Relative error that is allowed.

        Returns:
            One rank per layer; None where no rank of one term is enough.
        """
        return [
            next((r for r, e in enumerate(curve) if e <= error), None)
            for curve in self.curves
        ]

    def __str__(self) -> str:
        """Return one line per layer."""
        pairs = zip(self.ranks, self.errors, strict=True)
        return '\n'.join(
            f'layer {i}: rank {rank}, relative error {error:.3e}'
            for i, (rank, error) in enumerate(pairs)
        )


@torch.no_grad()
def fit_matrices(
    stack: StackedLinear,
    weights: Sequence[Tensor],
    max_iters: int = 50,
    tol: float = 1e-6,
    inputs: Sequence[Tensor] | None = None,
) -> FitReport:
    """Give a stack the values that come nearest to given matrices.

    It minimises ``sum_i ||W_i - W_shared - B_i A_i||^2`` by alternation:
    ``B_i A_i`` is the best rank-r part of ``W_i - W_shared`` (Eckart and
    Young), and the shared matrix the mean of ``W_i - B_i A_i``. Both are the
    exact minimum over their own unknowns, so the sum never rises; it may end
    in a local minimum. At full rank it is exact. It computes in float64.

    With inputs it minimises in the same way the summed relative error of the
    outputs, ``sum_i ||(W_i - W_shared - B_i A_i) X_i^T||^2 / ||W_i X_i^T||^2``
    (`OutputError`).

    Args:
        stack: Freshly built; its biases stay.
        weights: N matrices (out, in).
        max_iters: See `alternate`.
        tol: See `alternate`.
        inputs: N matrices (n, in) of inputs, as rows.

    Returns:
        Errors of the layers.
    """
    w = torch.stack([weight.double() for weight in weights])
    norm = OutputError(inputs, w) if inputs else WeightError()
    highest = min(w.shape[1:])
    ranks = [highest if stack.dense else 0] * len(w)
    for name, a in stack.private_A.items():
        ranks[int(name)] = min(len(a), highest)
    factors: dict[int, tuple[Tensor, Tensor]] = {}

    def fit_residual(layer: int, residual: Tensor) -> Tensor:
        b, a = factors[layer] = truncate(residual, ranks[layer])
        return residual - b @ a

    shared, report = alternate(
        w, norm, fit_residual, _errors_by_rank, stack.shared is not None,
        [str(r) for r in ranks], max_iters, tol,
    )  # fmt: skip
    for layer, parameter in enumerate(stack.dense):
        parameter.copy_(w[layer])
    if stack.shared is not None:
        stack.shared.copy_(shared)
    for name, b in stack.private_B.items():
        fitted_b, fitted_a = factors[int(name)]
        fitted_a = norm.unwhiten(int(name), fitted_a)
        norms_b, norms_a = fitted_b.norm(dim=0), fitted_a.norm(dim=1)
        # Components below the noise stay as in a fresh stack, A drawn and B
        # zero: with both zero they would never learn.
        noise = torch.finfo(b.dtype).eps * w[int(name)].norm()
        kept = (norms_b * norms_a > noise).nonzero()[:, 0]
        balance = (norms_a / norms_b)[kept].sqrt()
        b.zero_()
        b[:, kept] = (fitted_b[:, kept] * balance).to(b)
        a = stack.private_A[name]
        a[kept] = (fitted_a[kept] / balance[:, None]).to(a)
    return report


def alternate(
    weights: Tensor,
    norm: WeightError,
    fit_residual: Callable[[int, Tensor], Tensor],
    errors_by_rank: Callable[[Tensor], Tensor],
    with_shared: bool,
    ranks: Sequence[str],
    max_iters: int,
    tol: float,
) -> tuple[Tensor, FitReport]:
    """Fit a shared weight and the residuals of all layers in turns.

    The shared weight starts as the mean of the weights, in the norm.

    Args:
        weights: (N, ..., in).
        norm: What an error counts as. Residuals are fitted whitened by it.
        fit_residual: Fits the low-rank part of a layer, by its index, to
            ``W_i - W_shared`` and returns the difference that remains.
        errors_by_rank: Returns the squared errors of rank 0, 1, 2, ... for
            ``W_i - W_shared``, for the report.
        with_shared: Whether there is a shared weight; else it is 0.
        ranks: Ranks of the layers, for the report.
        max_iters: Largest number of updates of the shared weight.
        tol: Stop when the sum of squared errors falls by less than this
            fraction of the sum of squared weights.

    Returns:
        The shared weight (...) and the report.
    """

    def whiten(all_weights: Tensor) -> Tensor:
        return torch.stack(
            [norm.whiten(i, each) for i, each in enumerate(all_weights)]
        )

    whitened = whiten(weights)
    shared = torch.zeros_like(weights[0])
    if with_shared:
        shared = norm.mean(whitened)
    least = tol * whitened.square().sum().item()
    history: list[float] = []
    while True:
        residuals = whiten(weights - shared)
        errors = torch.stack(
            [fit_residual(i, r) for i, r in enumerate(residuals)]
        )
        history.append(errors.square().sum().item())
        has_stalled = len(history) > 1 and history[-2] - history[-1] <= least
        if len(history) > max_iters or has_stalled:
            break
        if with_shared:
            shared = shared + norm.mean(errors)
    # An error of 0 is 0 relative to a weight of 0 too.
    tiny = torch.finfo(weights.dtype).tiny
    norms = whitened.flatten(1).norm(dim=1).clamp(min=tiny)
    curves = [
        errors_by_rank(r).clamp(min=0).sqrt() / norm
        for r, norm in zip(residuals, norms, strict=True)
    ]
    return shared, FitReport(
        ranks=tuple(ranks),
        errors=tuple((errors.flatten(1).norm(dim=1) / norms).tolist()),
        history=tuple(history),
        curves=tuple(tuple(curve.tolist()) for curve in curves),
    )


def truncate(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return B (out, r) and A (r, in), whose product is the best of rank r.

    One factor is orthonormal and the other is the matrix projected on it, so
    that at full rank the product is exact even where eigenvectors are not.
    """
    if matrix.shape[0] > matrix.shape[1]:
        b, a = truncate(matrix.T, rank)
        return a.T, b.T
    basis = leading_eigenvectors(matrix @ matrix.T, rank)
    return basis, basis.T @ matrix


def leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    """Return (..., n, rank) eigenvectors of (..., n, n), largest first."""
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :rank]


def _errors_by_rank(residual: Tensor) -> Tensor:
    """Return the squared errors of the best fits of rank 0, 1, 2, ..."""
    energies = torch.linalg.svdvals(residual).square()
    return F.pad(energies, (0, 1)).flip(0).cumsum(0).flip(0)
