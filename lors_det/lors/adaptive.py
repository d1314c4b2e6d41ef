# SPDX-License-Identifier: Apache-2.0
"""LORS-A: matrices that are generated from a query."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from lors_det.lors.config import StackConfig, check_at_least
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
        if self.dense:
            return self._full(self.dense[layer], query)
        name = str(layer)
        if name not in self.core:
            assert self.shared is not None
            return self._full(self.shared, query)
        private = self._private(query, name)
        if self.shared is None:
            return private
        return self._full(self.shared, query) + private

    def _full(self, generator: nn.Module, query: Tensor) -> Tensor:
        sizes = (self.num_groups, self.rows, self.cols)
        matrices: Tensor = generator(query).unflatten(-1, sizes)
        return matrices

    def _private(self, query: Tensor, name: str) -> Tensor:
        """Sum the low-rank terms: one product over (k, r) makes the sum.

        Multiplying L into the small kernels first leaves a product whose
        other side, R, is the same for all queries: one large matrix product
        per group.
        """
        left, right = self.left[name], self.right[name]
        num_groups, num_terms, _, r = left.shape
        kernels = self.core[name](query)  # (..., G * K * r * r)
        kernels = kernels.unflatten(-1, (num_groups, num_terms, r, r))
        left = torch.einsum('gkir,...gkrs->...giks', left, kernels)
        return torch.einsum(
            '...gim,gmj->...gij', left.flatten(-2), right.flatten(1, 2)
        )

    def private_ranks(self, shapes: Shapes) -> dict[int, str]:
        """See `Stack.private_ranks`."""
        return {
            int(name.split('.')[1]): f'{shape[1]} x {shape[3]}'
            for name, shape in shapes.items()
            if name.startswith('left.')
        }
