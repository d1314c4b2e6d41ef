# SPDX-License-Identifier: Apache-2.0
"""LORS-A: matrices that are generated from a query."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors.config import StackConfig, check_at_least
from lors_det.lors.products import add_product, cheapest_place
from lors_det.lors.stack import Shapes, Stack


class AdaptiveStack(Stack):
    """N generators of query-dependent matrices, with a part in common.

    ``W_i(q) = W_shared(q) + sum_k L_ik E_ik(q) R_ik`` in the mode ``lors``:
    one linear generator makes ``W_shared(q)`` for all layers, a small one per
    layer the (r, r) kernels ``E_ik(q)`` between factors that do not depend on
    the query. The other modes leave one of the two parts out, or give each
    layer a full generator of its own (``dense``, plain AdaMixer).

    Each of G groups has matrices of its own. All generators start with zero
    weights, so the first matrices depend on their biases alone.

    Source: LORS (arXiv:2403.04303), adaptive low-rank residual structure
    (LORS-A); initial values as in the LORS and AdaMixer releases.

    Args:
        num_layers: Depth N.
        query_dim: Size C of a query.
        num_groups: Number G of groups.
        rows: Rows of a matrix.
        cols: Columns of a matrix.
        config: Where the N matrices come from; a ``StackConfig``, a dict of
            its fields, or None for dense.
        key: Name of the stack's setting, for error messages.

    Raises:
        TypeError: If a size or an entry of ``config`` has a wrong type.
        ValueError: If a size, mode, rank or number of entries is wrong.
    """

    parts: ClassVar[dict[str, str]] = {
        'dense': 'dense',
        'shared': 'shared',
        'core': 'private',
        'left': 'private',
        'right': 'private',
    }

    def __init__(
        self,
        num_layers: int,
        query_dim: int,
        num_groups: int,
        rows: int,
        cols: int,
        config: object = None,
        key: str = 'stack',
    ) -> None:
        config = StackConfig.parse(config, key)
        super().__init__(num_layers, config, key)
        check_at_least(
            1, query_dim=query_dim, num_groups=num_groups, rows=rows, cols=cols
        )
        self.query_dim = query_dim
        self.num_groups = num_groups
        self.rows = rows
        self.cols = cols
        self.sizes = config.private_sizes(num_layers, min(rows, cols), key)

        full = num_groups * rows * cols
        num_dense = num_layers if config.mode == 'dense' else 0
        self.dense = nn.ModuleList(
            nn.Linear(query_dim, full) for _ in range(num_dense)
        )
        self.shared = nn.Linear(query_dim, full) if config.has_shared else None
        # Dicts, not lists: a layer of rank 0 has no private part at all.
        self.core = nn.ModuleDict()
        self.left = nn.ParameterDict()
        self.right = nn.ParameterDict()
        for i, (k, r) in enumerate(self.sizes):
            if r:
                name = str(i)
                self.core[name] = nn.Linear(query_dim, num_groups * k * r * r)
                left = torch.empty(num_groups, k, rows, r)
                self.left[name] = nn.Parameter(left)
                right = torch.empty(num_groups, k, r, cols)
                self.right[name] = nn.Parameter(right)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values.

        Generators of whole matrices: weight 0, bias as ``nn.Linear``. Private
        generators: all zero in the mode ``lors`` as in the release, so that
        every layer starts as the shared one. In the mode ``private`` their
        bias is drawn with the scale that gives the product the variance of
        a dense matrix: a zero matrix would never get a gradient through the
        normalisation that follows the mixing.
        """
        for generator in [*self.dense, *filter(None, [self.shared])]:
            generator.reset_parameters()
            nn.init.zeros_(generator.weight)
        for name, core in self.core.items():
            assert isinstance(core, nn.Linear)
            left, right = self.left[name], self.right[name]
            num_terms, rows, r = left.shape[1:]
            for factor, fan_in in ((left, rows * r), (right, r * self.cols)):
                # fan_in as the release has it: of a term's whole factor.
                limit = math.sqrt(6 / fan_in)
                nn.init.uniform_(factor, -limit, limit)
            nn.init.zeros_(core.weight)
            limit = 0.0
            if self.shared is None:
                area = rows * self.cols
                limit = math.sqrt(area / (4 * core.in_features * num_terms))
            nn.init.uniform_(core.bias, -limit, limit)

    def forward(self, query: Tensor, layer: int) -> Tensor:
        """Generate the matrices of one layer.

        Args:
            query: (..., C).
            layer: Index of the layer, from 0.

        Returns:
            (..., G, rows, cols).
        """
        if self.cheapest(_count(query), layer) == 'generator':
            return self._generate(*self.generator(layer), query)
        full = self._full(query, layer)
        if str(layer) not in self.core:
            assert full is not None
            return full
        left, right = self._factors(query, layer)
        if full is None or torch.is_grad_enabled() or full.dtype != left.dtype:
            return add_product(full, left, right)
        # In place where autograd and autocast allow: nobody else holds it.
        return add_product(full, left, right, out=full)

    def row_product(self, x: Tensor, query: Tensor, layer: int) -> Tensor:
        """Multiply rows by the matrices of one layer: ``x W(q)``.

        Args:
            x: (..., G, n, rows).
            query: (..., C).
            layer: Index of the layer, from 0.

        Returns:
            (..., G, n, cols).
        """
        if self.cheapest(_count(query), layer, x.shape[-2]) != 'result':
            return x @ self(query, layer)
        full = self._full(query, layer)
        left, right = self._factors(query, layer)
        base = None if full is None else x @ full
        return add_product(base, x @ left, right)

    def column_product(self, x: Tensor, query: Tensor, layer: int) -> Tensor:
        """Multiply columns by the matrices of one layer: ``W(q) x``.

        Args:
            x: (..., G, cols, n).
            query: (..., C).
            layer: Index of the layer, from 0.

        Returns:
            (..., G, rows, n).
        """
        if self.cheapest(_count(query), layer, x.shape[-1]) != 'result':
            return self(query, layer) @ x
        full = self._full(query, layer)
        left, right = self._factors(query, layer)
        base = None if full is None else full @ x
        return add_product(base, left, right @ x)

    def cheapest(
        self, num_queries: int, layer: int, num_vectors: int | None = None
    ) -> str:
        """Choose where the low-rank terms are added (`cheapest_place`).

        Args:
            num_queries: Number of queries, of all images.
            layer: Index of the layer, from 0.
            num_vectors: Number of rows or columns that every matrix is
                multiplied by; None if the matrices are wanted.

        Returns:
            ``generator``, ``matrices`` or ``result``.
        """
        return cheapest_place(
            num_queries,
            self.query_dim,
            (self.rows, self.cols),
            self.sizes[layer],
            self._full_generator(layer) is not None,
            num_vectors,
        )

    def generator(self, layer: int) -> tuple[Tensor, Tensor]:
        """Build the one linear generator of a layer's matrices.

        Args:
            layer: Index of the layer, from 0.

        Returns:
            Weight (G * rows * cols, C) and bias (G * rows * cols).
        """
        full = self._full_generator(layer)
        name = str(layer)
        if name not in self.core:
            assert full is not None
            return full.weight, full.bias
        core = self.core[name]
        assert isinstance(core, nn.Linear)
        weight = self._add_terms(
            None if full is None else full.weight, core.weight, name
        )
        bias = self._add_terms(
            None if full is None else full.bias[:, None],
            core.bias[:, None],
            name,
        )
        return weight, bias[:, 0]

    def _add_terms(
        self, base: Tensor | None, kernels: Tensor, name: str
    ) -> Tensor:
        """Add L E R to a generator, column by column of its weight.

        Args:
            base: (G * rows * cols, n), or None for zero.
            kernels: (G * K * r * r, n), the generator of E.
            name: Name of the layer.

        Returns:
            (G * rows * cols, n).
        """
        num_groups, num_terms, _, r = self.left[name].shape
        kernels = kernels.unflatten(0, (num_groups, num_terms, r, r))
        # (G, K, 1, cols, r) @ (G, K, r, r, n): R from the right
        right = self.right[name].mT[:, :, None] @ kernels
        right = right.flatten(3).flatten(1, 2)  # (G, K r, cols * n)
        if base is not None:
            base = base.view(num_groups, self.rows, -1)
        return add_product(base, self._left(name), right).view(
            -1, kernels.shape[-1]
        )

    def _full_generator(self, layer: int) -> nn.Linear | None:
        """The generator of whole matrices, if the mode has one."""
        full = self.dense[layer] if self.dense else self.shared
        assert full is None or isinstance(full, nn.Linear)
        return full

    def _full(self, query: Tensor, layer: int) -> Tensor | None:
        full = self._full_generator(layer)
        if full is None:
            return None
        return self._generate(full.weight, full.bias, query)

    def _generate(self, weight: Tensor, bias: Tensor, query: Tensor) -> Tensor:
        matrices = F.linear(query, weight, bias)
        return matrices.unflatten(-1, (self.num_groups, self.rows, self.cols))

    def _left(self, name: str) -> Tensor:
        """L of all terms side by side: (G, rows, K r)."""
        return self.left[name].transpose(1, 2).flatten(2)

    def _factors(self, query: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Two factors whose product is the sum of the low-rank terms.

        Returns:
            L (G, rows, K r) and E(q) R (..., G, K r, cols).
        """
        name = str(layer)
        factor = self.right[name]
        num_groups, num_terms, r, _ = factor.shape
        kernels = self.core[name](query)
        kernels = kernels.unflatten(-1, (num_groups, num_terms, r, r))
        return self._left(name), (kernels @ factor).flatten(-3, -2)

    def private_ranks(self, shapes: Shapes) -> dict[int, str]:
        """See `Stack.private_ranks`."""
        return {
            int(name.split('.')[1]): f'{shape[1]} x {shape[3]}'
            for name, shape in shapes.items()
            if name.startswith('left.')
        }


def _count(query: Tensor) -> int:
    """Number of queries of a tensor (..., C)."""
    return math.prod(query.shape[:-1])
