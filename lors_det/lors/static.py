# SPDX-License-Identifier: Apache-2.0
"""LORS-T: linear layers whose weights do not depend on the input."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors.config import StackConfig, check_at_least
from lors_det.lors.stack import Shapes, Stack


class StackedLinear(Stack):
    """N linear layers of one shape whose weights may have a part in common.

    ``W_i = W_shared + sum_k B_ik A_ik`` in the mode ``lors``; the other modes
    leave one of the two parts out, or make the N matrices unrelated. The K
    terms of a layer are stored as one term of rank K r, which is the same
    matrix.

    Source: LORS (arXiv:2403.04303), static low-rank residual structure
    (LORS-T).

    Args:
        num_layers: Depth N.
        in_features: Size h of the input.
        out_features: Size d of the output.
        config: Where the N matrices come from; a ``StackConfig``, a dict of
            its fields, or None for dense.
        bias: Whether each layer has a bias (always its own).
        key: Name of the stack's setting, for error messages.

    Raises:
        TypeError: If a size or an entry of ``config`` has a wrong type.
        ValueError: If a size, mode, rank or number of entries is wrong.

    Example:
        >>> stack = StackedLinear(12, 192, 576, dict(mode='lors', rank=8))
        >>> stack(torch.rand(4, 192), layer=3).shape
        torch.Size([4, 576])
    """

    parts: ClassVar[dict[str, str]] = {
        'dense': 'dense',
        'shared': 'shared',
        'private_a': 'private',
        'private_b': 'private',
        'bias': 'other',
    }

    def __init__(
        self,
        num_layers: int,
        in_features: int,
        out_features: int,
        config: object = None,
        bias: bool = True,
        key: str = 'stack',
    ) -> None:
        config = StackConfig.parse(config, key)
        super().__init__(num_layers, config, key)
        check_at_least(1, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        sizes = config.private_sizes(
            num_layers, min(in_features, out_features), key
        )
        num_dense = num_layers if config.mode == 'dense' else 0
        self.dense = nn.ParameterList(
            _matrix(out_features, in_features) for _ in range(num_dense)
        )
        self.shared = (
            _matrix(out_features, in_features) if config.has_shared else None
        )
        # Dicts, not lists: a layer of rank 0 has no factors at all.
        self.private_a = nn.ParameterDict(
            {
                str(i): _matrix(k * r, in_features)
                for i, (k, r) in enumerate(sizes)
                if r
            }
        )
        self.private_b = nn.ParameterDict(
            {
                str(i): _matrix(out_features, k * r)
                for i, (k, r) in enumerate(sizes)
                if r
            }
        )
        self.bias = nn.ParameterList(
            _matrix(out_features) for _ in range(num_layers if bias else 0)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values.

        Dense and shared matrices follow ``nn.Linear``. In the mode ``lors``
        A is drawn, B and the biases are zero as in the LORS release, so that
        every layer starts as the shared one. In the mode ``private`` B is
        drawn too, with the scale that gives ``B A`` the variance of a dense
        matrix: with B zero a stack without shared part would start dead.
        """
        bound = 1 / math.sqrt(self.in_features)
        for weight in self.dense:
            nn.init.uniform_(weight, -bound, bound)
        if self.shared is not None:
            nn.init.uniform_(self.shared, -bound, bound)
        for layer, a in self.private_a.items():
            limit = math.sqrt(6 / self.in_features)
            nn.init.uniform_(a, -limit, limit)
            limit = math.sqrt(1 / (2 * len(a))) if self.shared is None else 0
            nn.init.uniform_(self.private_b[layer], -limit, limit)
        for b in self.bias:
            limit = bound if self.config.mode == 'dense' else 0
            nn.init.uniform_(b, -limit, limit)

    def weight(self, layer: int) -> Tensor:
        """Build the matrix of one layer.

        Args:
            layer: Index of the layer, from 0.

        Returns:
            (out_features, in_features).
        """
        if self.dense:
            return self.dense[layer]
        name = str(layer)
        if name not in self.private_a:
            assert self.shared is not None
            return self.shared
        a, b = self.private_a[name], self.private_b[name]
        if self.shared is None:
            return b @ a
        return torch.addmm(self.shared, b, a)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Apply one layer.

        Args:
            x: (..., in_features).
            layer: Index of the layer, from 0.

        Returns:
            (..., out_features).
        """
        bias = self.bias[layer] if self.bias else None
        num_rows = math.prod(x.shape[:-1])
        if not self.is_applied(num_rows, layer):
            return F.linear(x, self.weight(layer), bias)
        name = str(layer)
        # As rows, so that autograd sums the two gradients of x in place.
        rows = x.reshape(-1, self.in_features)
        low = F.linear(rows, self.private_a[name])
        y = F.linear(low, self.private_b[name], bias)
        if self.shared is not None:
            y = torch.addmm(y, rows, self.shared.mT)
        return y.view(*x.shape[:-1], self.out_features)

    def is_applied(self, num_rows: int, layer: int) -> bool:
        """Choose by multiply-adds: apply the low-rank part, or sum up first.

        Args:
            num_rows: Number of inputs.
            layer: Index of the layer, from 0.

        Returns:
            Whether ``B (A x)`` is cheaper than ``B A``.
        """
        applied = num_rows * (self.in_features + self.out_features)
        summed = self.in_features * self.out_features
        if self.shared is None:
            summed += num_rows * summed
        return str(layer) in self.private_a and applied < summed

    def private_ranks(self, shapes: Shapes) -> dict[int, str]:
        """See `Stack.private_ranks`; K and r are stored as their product."""
        return {
            int(name.split('.')[1]): str(shape[0])
            for name, shape in shapes.items()
            if name.startswith('private_a.')
        }


def _matrix(*shape: int) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(*shape))
