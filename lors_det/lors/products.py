# SPDX-License-Identifier: Apache-2.0
"""Products with W(q) = W_shared(q) + L E(q) R, at the lowest cost."""

from __future__ import annotations

import torch
from torch import Tensor


def cheapest_place(
    num_queries: int,
    query_dim: int,
    shape: tuple[int, int],
    private: tuple[int, int],
    has_full: bool,
    num_vectors: int | None = None,
) -> str:
    """Choose where the low-rank terms are added, by counted multiply-adds.

    Generators are linear in the query, so that the terms can be added to the
    shared generator, once for all queries (``generator``); to the matrix of
    every query (``matrices``); or to what the products give, without building
    the sum (``result``).

    Args:
        num_queries: Number of queries, of all images.
        query_dim: Size C of a query.
        shape: Rows and columns of a matrix.
        private: Number K of terms and their rank r.
        has_full: Whether there is a generator of whole matrices to add to.
        num_vectors: Number of rows or columns that every matrix is
            multiplied by; None if the matrices are wanted.

    Returns:
        The name of the place; ``matrices`` where there is no term.
    """
    rows, cols = shape
    num_terms, r = private
    low = num_terms * r
    area = rows * cols
    # Counts of one group.
    full = area * query_dim  # to generate a matrix
    use = area * (num_vectors or 0)
    kernels = low * r * query_dim
    inner = low * r * cols  # E R
    sums = inner + low * area  # L E R
    base = 1 if has_full else 0
    costs = {
        'matrices': num_queries * (base * full + kernels + sums + use),
        'generator': num_queries * (full + use) + (query_dim + 1) * sums,
    }
    if num_vectors is not None:
        applied = low * num_vectors * (rows + cols)
        costs['result'] = num_queries * (
            base * (full + use) + kernels + inner + applied
        )
    best = 'matrices'
    for place, cost in costs.items():  # torch.compile knows no min by key
        if cost < costs[best]:
            best = place
    return best


def add_product(
    base: Tensor | None,
    left: Tensor,
    right: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """Sum ``base + left @ right`` without building the product by itself.

    Args:
        base: (..., rows, cols), or None for zero.
        left: (..., rows, n), fewer leading axes where it is the same for all.
        right: (..., n, cols), the same.
        out: Where to write to; may be ``base``.

    Returns:
        (..., rows, cols).
    """
    if base is None:
        return left @ right
    lead = base.shape[:-2]
    left = left.expand(*lead, -1, -1).flatten(0, -3)
    right = right.expand(*lead, -1, -1).flatten(0, -3)
    batched = base.flatten(0, -3)
    if out is not None:
        out = out.flatten(0, -3)
    return torch.baddbmm(batched, left, right, out=out).view(base.shape)
