# SPDX-License-Identifier: Apache-2.0
"""Fit a shared matrix and low-rank residuals to given matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lors_det.lors.config import per_layer
from lors_det.lors.stacks import StackedLinear


@dataclass(frozen=True)
class FitReport:
    """How well a fit reproduces the weights that it was made from.

    Args:
        ranks: Rank of every layer, ``K x r`` for generators.
        errors: Relative error of every layer, in the Frobenius norm.
        history: Sum of the squared errors of all layers after every
            iteration; it never rises.
        curves: For every layer the relative error of rank 0, 1, 2, ... with
            the shared part of this fit; for generators of one term (K = 1)
            by a truncated decomposition, which a fit of that rank improves.
    """

    ranks: tuple[str, ...]
    errors: tuple[float, ...]
    history: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]

    def rank_for(self, error: float) -> list[int | None]:
        """Smallest rank of every layer for an error.

        Args:
            error: Relative error that is allowed.

        Returns:
            One rank per layer; None where no rank of one term reaches it.
        """
        return [
            next((r for r, e in enumerate(curve) if e <= error), None)
            for curve in self.curves
        ]

    def __str__(self) -> str:
        """One line per layer."""
        return '\n'.join(
            f'layer {i}: rank {rank}, relative error {error:.3e}'
            for i, (rank, error) in enumerate(
                zip(self.ranks, self.errors, strict=True)
            )
        )


@dataclass(frozen=True)
class MatrixFit:
    """A shared matrix and low-rank residuals.

    Args:
        shared: (out, in), or None for a fit without.
        left: N factors B (out, r_i).
        right: N factors A (r_i, in).
        report: Errors.
    """

    shared: Tensor | None
    left: list[Tensor]
    right: list[Tensor]
    report: FitReport


@torch.no_grad()
def factorise_matrices(
    weights: Tensor | Sequence[Tensor],
    rank: int | Sequence[int],
    with_shared: bool = True,
    max_iters: int = 50,
    tol: float = 1e-6,
) -> MatrixFit:
    """Minimise ``sum_i ||W_i - W_sh - B_i A_i||^2`` by alternation.

    It starts from the mean and the truncated singular value decomposition
    of what remains. Then, in turns, the shared matrix is the mean of
    ``W_i - B_i A_i``, and ``B_i A_i`` the best rank-r part of
    ``W_i - W_sh`` (Eckart and Young). Both are the exact minimum over their
    own unknowns, so the sum never rises; it may end in a local minimum. At
    full rank it is exact. Everything is computed in float64.

    Args:
        weights: (N, out, in), or N matrices (out, in).
        rank: Rank of the residuals; one value, or one per layer.
        with_shared: Whether there is a shared matrix; without, one step is
            the optimum.
        max_iters: Largest number of alternations; 0 leaves the start.
        tol: Stop when the sum sinks by less than this part of
            ``sum_i ||W_i||^2``.

    Returns:
        Shared part, factors and report, in float64.

    Raises:
        TypeError: If ``rank`` is not made of integers.
        ValueError: If matrices differ in shape, or a rank is out of range.
    """
    shapes = sorted({tuple(w.shape) for w in weights})
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(
            f'weights of shapes {shapes}: expected matrices of one shape'
        )
    w = torch.stack([weight.double() for weight in weights])
    ranks = per_layer(rank, len(w), 'rank', 0, min(shapes[0]))
    shared = w.mean(0) if with_shared else torch.zeros_like(w[0])
    total = w.square().sum().item()
    history: list[float] = []
    while True:
        factors = [
            truncate(m - shared, r) for m, r in zip(w, ranks, strict=True)
        ]
        rest = torch.stack(
            [m - b @ a for m, (b, a) in zip(w, factors, strict=True)]
        )
        history.append((rest - shared).square().sum().item())
        if (
            not with_shared
            or len(history) > max_iters
            or (len(history) > 1 and history[-2] - history[-1] <= tol * total)
        ):
            break
        shared = rest.mean(0)
    report = FitReport(
        tuple(map(str, ranks)),
        relative_errors(rest - shared, w),
        tuple(history),
        tuple(_curve(m - shared, m) for m in w),
    )
    return MatrixFit(
        shared if with_shared else None,
        [b for b, _ in factors],
        [a for _, a in factors],
        report,
    )


def relative_errors(errors: Tensor, weights: Tensor) -> tuple[float, ...]:
    """Norms of N errors, relative to those of N weights.

    Args:
        errors: (N, ...).
        weights: (N, ...).

    Returns:
        N numbers; 0 for an error of 0, also of a weight 0.
    """
    tiny = torch.finfo(weights.dtype).tiny
    norms = weights.flatten(1).norm(dim=1).clamp(min=tiny)
    return tuple((errors.flatten(1).norm(dim=1) / norms).tolist())


def truncate(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Best approximation of one rank.

    One factor is orthonormal and the other is the matrix seen through it, so
    that at full rank the product is the matrix, whatever the eigenvectors.

    Args:
        matrix: (out, in).
        rank: Rank r.

    Returns:
        (out, r) and (r, in), larger singular values first.
    """
    if matrix.shape[0] > matrix.shape[1]:
        right, left = truncate(matrix.T, rank)
        return left.T, right.T
    basis = leading(matrix @ matrix.T, rank)
    return basis, basis.T @ matrix


def leading(gram: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues.

    Args:
        gram: (..., n, n), symmetric.
        rank: How many.

    Returns:
        (..., n, rank).
    """
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :rank]


def _curve(residual: Tensor, weight: Tensor) -> tuple[float, ...]:
    left, right = truncate(residual, min(residual.shape))
    energies = (left.norm(dim=0) * right.norm(dim=1)).square()
    tails = energies.flip(0).cumsum(0).flip(0).sqrt()
    norm = weight.norm().clamp(min=torch.finfo(weight.dtype).tiny)
    return (*(tails / norm).tolist(), 0.0)


@torch.no_grad()
def fill(
    stack: StackedLinear,
    weights: Sequence[Tensor],
    max_iters: int = 50,
    tol: float = 1e-6,
) -> FitReport:
    """Give a stack the values that come nearest to given matrices.

    Components that the residuals do not have stay as a fresh stack has
    them, A drawn and B zero: with both zero they would never learn.

    Args:
        stack: Freshly built; its biases stay.
        weights: N matrices (out, in).
        max_iters: See `factorise_matrices`.
        tol: See `factorise_matrices`.

    Returns:
        Errors of the layers.
    """
    limit = min(stack.in_features, stack.out_features)
    sizes = [
        min(len(stack.private_A[str(i)]), limit)
        if str(i) in stack.private_A
        else 0
        for i in range(stack.num_layers)
    ]
    if stack.dense:
        for p, weight in zip(stack.dense, weights, strict=True):
            p.copy_(weight)
        return factorise_matrices(weights, limit, False).report
    fit = factorise_matrices(
        weights, sizes, stack.shared is not None, max_iters, tol
    )
    if stack.shared is not None and fit.shared is not None:
        stack.shared.copy_(fit.shared)
    for name, b in stack.private_B.items():
        left, right = fit.left[int(name)], fit.right[int(name)]
        scales = left.norm(dim=0), right.norm(dim=1)
        singular = scales[0] * scales[1]
        noise = torch.finfo(b.dtype).eps * weights[int(name)].norm()
        kept = singular > noise
        b.zero_()
        for j in kept.nonzero()[:, 0].tolist():
            root = singular[j].sqrt()
            b[:, j] = left[:, j] * (root / scales[0][j])
            stack.private_A[name][j] = right[j] * (root / scales[1][j])
    return fit.report
