# SPDX-License-Identifier: Apache-2.0
"""Norms of a stack: always one per layer, there is little to share."""

from __future__ import annotations

from torch import Tensor, nn


class StackedLayerNorm(nn.ModuleList):
    """N layer norms with affine, one for each layer of a stack.

    Args:
        num_layers: Depth N.
        dims: Size of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, num_layers: int, dims: int, eps: float = 1e-5) -> None:
        super().__init__(
            nn.LayerNorm(dims, eps=eps) for _ in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Set weights to 1 and biases to 0."""
        for norm in self:
            assert isinstance(norm, nn.LayerNorm)
            norm.reset_parameters()

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Normalise with the norm of one layer.

        Args:
            x: (..., dims).
            layer: Index of the layer, from 0.

        Returns:
            (..., dims).
        """
        return self[layer](x)
