# SPDX-License-Identifier: Apache-2.0
"""Fit a shared generator and low-rank terms to given generators.

A generator is linear: with ``q' = (q, 1)`` its matrix for a query is
``W_i(q) = T_i q'``, T_i (rows, cols, C + 1) holding weight and bias. A term
``L E(q) R`` with linear ``E(q) = M q'``, M (r, r, C + 1), is the tensor M with
L applied to its rows and R to its columns: a Tucker decomposition of T_i over
two of its axes. So what a matrix has in its singular vectors, a generator has
in the leading subspaces of its two unfoldings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lors_det.lors.fit import FitReport, leading, relative_errors
from lors_det.lors.stacks import AdaptiveStack

SWEEPS = 3


@dataclass
class Term:
    """One term ``L E(q) R`` of all groups.

    Args:
        left: (G, rows, r), orthonormal columns.
        core: (G, r, r, D), with D = C + 1.
        right: (G, r, cols), orthonormal rows.
    """

    left: Tensor
    core: Tensor
    right: Tensor

    def tensor(self) -> Tensor:
        """What it adds to the generator, (G, rows, cols, D)."""
        return torch.einsum(
            'gir,grsd,gsj->gijd', self.left, self.core, self.right
        )


@dataclass(frozen=True)
class GeneratorFit:
    """A shared generator and low-rank terms.

    Args:
        shared: (G, rows, cols, D), or None for a fit without.
        terms: For every layer its K terms.
        report: Errors.
    """

    shared: Tensor | None
    terms: list[list[Term]]
    report: FitReport


@torch.no_grad()
def factorise_generators(
    tensors: Tensor,
    sizes: Sequence[tuple[int, int]],
    with_shared: bool = True,
    max_iters: int = 50,
    tol: float = 1e-6,
) -> GeneratorFit:
    """Fit generators in the least-squares sense of their coefficients.

    That is the expected squared error of ``W_i(q)`` for queries with mean
    zero and unit covariance. A term is fitted by truncated higher-order
    SVD and orthogonal iteration, K terms one after the other to what the
    others leave, and the shared generator is the mean of what all leave; no
    step raises the error. Other than for matrices each step is a local
    optimum only: for K = 1 of a Tucker decomposition, for K > 1 of a
    decomposition into block terms, which has no closed form. It is exact
    where r is the smaller side of the matrix and K r reaches the larger
    one: a term alone reaches r rows and r columns.

    Source: De Lathauwer et al., "On the best rank-1 and rank-(R1, ..., RN)
    approximation of higher-order tensors" (SIAM J. Matrix Anal. Appl. 2000).

    Args:
        tensors: (N, G, rows, cols, D) weights and biases.
        sizes: (K, r) of every layer; (0, 0) for none.
        with_shared: Whether there is a shared generator.
        max_iters: Largest number of alternations; 0 leaves the start.
        tol: Stop when the sum of squared errors sinks by less than this part
            of that of all entries.

    Returns:
        Shared generator, terms and report, in float64.
    """
    tensors = tensors.double()
    shared = tensors.mean(0) if with_shared else torch.zeros_like(tensors[0])
    total = tensors.square().sum().item()
    terms: list[list[Term]] = [[] for _ in sizes]
    history: list[float] = []
    while True:
        rest = torch.stack(
            [
                _refine(tensor - shared, layer, *size)
                for tensor, layer, size in zip(
                    tensors, terms, sizes, strict=True
                )
            ]
        )  # what the terms leave of T_i - T_shared
        history.append(rest.square().sum().item())
        if len(history) > max_iters or (
            len(history) > 1 and history[-2] - history[-1] <= tol * total
        ):
            break
        if with_shared:
            shared = shared + rest.mean(0)
    report = FitReport(
        tuple(f'{k} x {r}' if r else '0' for k, r in sizes),
        relative_errors(rest, tensors),
        tuple(history),
        tuple(_curve(tensor - shared, tensor) for tensor in tensors),
    )
    return GeneratorFit(shared if with_shared else None, terms, report)


def _refine(rest: Tensor, terms: list[Term], k: int, r: int) -> Tensor:
    """Fit K terms anew, in place; return what they leave of ``rest``."""
    for term in terms:
        rest = rest - term.tensor()
    for j in range(k):
        if j < len(terms):
            rest = rest + terms[j].tensor()
            terms[j] = _iterate(rest, terms[j].right)
        else:
            gram = torch.einsum('gijd,gikd->gjk', rest, rest)
            terms.append(_iterate(rest, leading(gram, r).mT))
        rest = rest - terms[j].tensor()
    return rest


def _iterate(tensor: Tensor, right: Tensor) -> Term:
    """Orthogonal iteration from given columns; the error never rises."""
    rank = right.shape[1]
    for _ in range(SWEEPS):
        seen = torch.einsum('gijd,grj->gird', tensor, right)
        gram = torch.einsum('gird,gkrd->gik', seen, seen)
        left = leading(gram, rank)
        seen = torch.einsum('gijd,gir->grjd', tensor, left)
        gram = torch.einsum('grjd,grkd->gjk', seen, seen)
        right = leading(gram, rank).mT
    core = torch.einsum('grjd,gsj->grsd', seen, right)
    return Term(left, core, right)


def _curve(rest: Tensor, tensor: Tensor) -> tuple[float, ...]:
    """Relative error of one term of every rank, by the truncated HOSVD."""
    rows, cols = rest.shape[1:3]
    left = leading(torch.einsum('gijd,gkjd->gik', rest, rest), rows)
    right = leading(torch.einsum('gijd,gikd->gjk', rest, rest), cols)
    core = torch.einsum('gijd,gir,gjs->rsgd', rest, left, right)
    kept = core.square().sum((2, 3)).cumsum(0).cumsum(1).diagonal()
    total = rest.square().sum()
    norm = tensor.norm().clamp(min=torch.finfo(tensor.dtype).tiny)
    errors = (total - torch.cat([kept.new_zeros(1), kept])).clamp(min=0)
    return tuple((errors.sqrt() / norm).tolist())


@torch.no_grad()
def fill_adaptive(
    stack: AdaptiveStack,
    generators: Sequence[nn.Linear],
    max_iters: int = 50,
    tol: float = 1e-6,
) -> FitReport:
    """Give a stack the values that come nearest to given generators.

    Args:
        stack: Freshly built, not dense.
        generators: N linear maps from queries to (G, rows, cols).
        max_iters: See `factorise_generators`.
        tol: See `factorise_generators`.

    Returns:
        Errors of the layers.
    """
    sizes = (stack.num_groups, stack.rows, stack.cols)
    tensors = torch.stack(
        [
            torch.cat([g.weight, g.bias[:, None]], 1).unflatten(0, sizes)
            for g in generators
        ]
    )
    fit = factorise_generators(
        tensors, stack.sizes, stack.shared is not None, max_iters, tol
    )
    if stack.shared is not None and fit.shared is not None:
        _set(stack.shared, fit.shared)
    for name, core in stack.private_E.items():
        terms = fit.terms[int(name)]
        stack.private_B[name].copy_(torch.stack([t.left for t in terms], 1))
        stack.private_A[name].copy_(torch.stack([t.right for t in terms], 1))
        _set(core, torch.stack([t.core for t in terms], 1))
    return fit.report


def _set(generator: nn.Module, tensor: Tensor) -> None:
    assert isinstance(generator, nn.Linear)
    flat = tensor.flatten(0, -2)
    generator.weight.copy_(flat[:, :-1])
    generator.bias.copy_(flat[:, -1])
