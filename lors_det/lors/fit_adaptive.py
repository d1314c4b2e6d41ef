# SPDX-License-Identifier: Apache-2.0
"""Fit a shared generator and low-rank terms to given generators.

A generator is linear: with ``q' = (q, 1)`` its matrix for a query is
``W_i(q) = T_i q'``, where T_i (rows, cols, D), D = C + 1, holds weight and
bias. A term ``B E(q) A`` with ``E(q) = M q'``, M (r, r, D), is the tensor M
with B applied to its rows and A to its columns: a Tucker decomposition of T_i
over two of its axes. The leading subspaces of the two unfoldings are for a
generator what the singular vectors are for a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lors_det.lors.fit import FitReport, alternate, leading_eigenvectors
from lors_det.lors.inputs import OutputError, WeightError
from lors_det.lors.stacks import AdaptiveStack

ITERATIONS = 3  # of one term, each time that it is fitted


class Term(NamedTuple):
    """One term ``B E(q) A`` of all groups: A and B are orthonormal."""

    b: Tensor  # (G, rows, r)
    e: Tensor  # generator of E, (G, r, r, D)
    a: Tensor  # (G, r, cols)

    def as_generator(self) -> Tensor:
        """Multiply out, (G, rows, cols, D)."""
        return torch.einsum('gir,grsd,gsj->gijd', *self)


@torch.no_grad()
def fit_generators(
    stack: AdaptiveStack,
    generators: Sequence[nn.Linear],
    max_iters: int = 50,
    tol: float = 1e-6,
    inputs: Sequence[Tensor] | None = None,
) -> FitReport:
    """Give a stack the values that come nearest to given generators.

    It minimises the summed squared error of the coefficients, which is the
    expected squared error of ``W_i(q)`` for queries with mean zero and unit
    covariance. With inputs it minimises the relative error of ``W_i(q)`` for
    those queries (`OutputError`). A term is fitted by truncated higher-order
    SVD and orthogonal iteration; K terms are fitted one after the other, each
    to what the others leave; no step raises the error. Unlike for matrices
    each step is a local optimum only: for K = 1 of a Tucker decomposition, for
    K > 1 of a decomposition into block terms, which has no closed form. The
    fit is exact where r is the smaller side of the matrix and K r is at least
    the larger one: one term spans r rows and r columns. It computes in
    float64.

    Source: De Lathauwer et al., "On the best rank-1 and rank-(R1, ..., RN)
    approximation of higher-order tensors" (SIAM J. Matrix Anal. Appl. 2000).

    Args:
        stack: Freshly built, not dense.
        generators: N linear maps from queries to (G, rows, cols).
        max_iters: See `alternate`.
        tol: See `alternate`.
        inputs: N matrices (n, C + 1): queries, with a one behind each.

    Returns:
        Errors of the layers.
    """
    shape = (stack.num_groups, stack.rows, stack.cols)
    flat = [torch.cat([g.weight, g.bias[:, None]], 1) for g in generators]
    tensors = torch.stack(flat).double().unflatten(1, shape)
    norm = OutputError(inputs, tensors) if inputs else WeightError()
    terms: list[list[Term]] = [[] for _ in generators]
    shared, report = alternate(
        tensors,
        norm,
        lambda layer, t: _fit_terms(t, terms[layer], *stack.sizes[layer]),
        _errors_by_rank,
        stack.shared is not None,
        [f'{k} x {r}' if r else '0' for k, r in stack.sizes],
        max_iters,
        tol,
    )
    if stack.shared is not None:
        _set_generator(stack.shared, shared)
    for name, generator in stack.private_E.items():
        b, e, a = (
            torch.stack(t, 1) for t in zip(*terms[int(name)], strict=True)
        )
        stack.private_B[name].copy_(b)
        stack.private_A[name].copy_(a)
        _set_generator(generator, norm.unwhiten(int(name), e))
    return report


def _fit_terms(tensor: Tensor, terms: list[Term], k: int, r: int) -> Tensor:
    """Fit K terms again, in place; return what they leave of a generator."""
    rest = tensor
    for term in terms:
        rest = rest - term.as_generator()
    for j in range(k):
        if j < len(terms):
            rest = rest + terms[j].as_generator()
            terms[j] = _fit_term(rest, terms[j].a)
        else:
            gram = torch.einsum('gijd,gikd->gjk', rest, rest)
            terms.append(_fit_term(rest, leading_eigenvectors(gram, r).mT))
        rest = rest - terms[j].as_generator()
    return rest


def _fit_term(tensor: Tensor, a: Tensor) -> Term:
    """Improve A and B by orthogonal iteration; the error never rises."""
    rank = a.shape[1]
    for _ in range(ITERATIONS):
        projected = torch.einsum('gijd,grj->gird', tensor, a)
        gram = torch.einsum('gird,gkrd->gik', projected, projected)
        b = leading_eigenvectors(gram, rank)
        projected = torch.einsum('gijd,gir->grjd', tensor, b)
        gram = torch.einsum('grjd,grkd->gjk', projected, projected)
        a = leading_eigenvectors(gram, rank).mT
    return Term(b, torch.einsum('grjd,gsj->grsd', projected, a), a)


def _errors_by_rank(tensor: Tensor) -> Tensor:
    """Return the squared errors of one term of rank 0, 1, 2, ..., by HOSVD."""
    rows, cols = tensor.shape[1:3]
    gram = torch.einsum('gijd,gkjd->gik', tensor, tensor)
    b = leading_eigenvectors(gram, rows)
    gram = torch.einsum('gijd,gikd->gjk', tensor, tensor)
    a = leading_eigenvectors(gram, cols)
    e = torch.einsum('gijd,gir,gjs->rsgd', tensor, b, a)
    kept = e.square().sum((2, 3)).cumsum(0).cumsum(1).diagonal()
    return tensor.square().sum() - torch.cat([kept.new_zeros(1), kept])


def _set_generator(generator: nn.Module, tensor: Tensor) -> None:
    assert isinstance(generator, nn.Linear)
    flat = tensor.flatten(0, -2)
    generator.weight.copy_(flat[:, :-1])
    generator.bias.copy_(flat[:, -1])
