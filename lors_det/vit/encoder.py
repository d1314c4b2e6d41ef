# SPDX-License-Identifier: Apache-2.0
"""The transformer encoder, whose linear layers are stacks over the depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors import StackedLayerNorm, StackedLinear
from lors_det.lors.config import check_at_least

STACKS = ('attention', 'ffn')
NORM_EPS = 1e-6


class SelfAttention(nn.Module):
    """The self-attention between tokens of all layers.

    Args:
        num_layers: Number of layers.
        embed_dims: Size C of a token.
        num_heads: Number H of attention heads.
        stack: Where the projections of the layers come from (`StackConfig`).

    Raises:
        TypeError: If an entry of ``stack`` has a wrong type.
        ValueError: If C is not divisible by H, or ``stack`` is wrong.
    """

    def __init__(
        self,
        num_layers: int,
        embed_dims: int,
        num_heads: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'model.num_heads={num_heads}: expected a divisor of '
                f'model.embed_dims={embed_dims}'
            )
        self.num_heads = num_heads
        key = 'model.stacks.attention'
        self.qkv = StackedLinear(
            num_layers, embed_dims, 3 * embed_dims, stack, key=key
        )
        self.proj = StackedLinear(
            num_layers, embed_dims, embed_dims, stack, key=key
        )
        init_matrix = partial(nn.init.trunc_normal_, std=0.02)
        for linear in (self.qkv, self.proj):
            init_stack(linear, init_matrix)

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """Let the tokens of each image attend to each other.

        Args:
            tokens: (B, T, C).
            layer: Index of the layer, from 0.

        Returns:
            (B, T, C).
        """
        q, k, v = (
            self.qkv(tokens, layer)
            .unflatten(-1, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)  # (3, B, H, T, C / H)
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2), layer)


class FeedForward(nn.Module):
    """The feed-forward networks of all layers: linear, exact GELU, linear.

    Args:
        num_layers: Number of layers.
        embed_dims: Size C of a token.
        hidden_dims: Size of the hidden layer.
        stack: Where the weights of the layers come from (`StackConfig`).

    Raises:
        TypeError: If an entry of ``stack`` has a wrong type.
        ValueError: If ``stack`` is wrong.
    """

    def __init__(
        self,
        num_layers: int,
        embed_dims: int,
        hidden_dims: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        key = 'model.stacks.ffn'
        self.fc1 = StackedLinear(
            num_layers, embed_dims, hidden_dims, stack, key=key
        )
        self.fc2 = StackedLinear(
            num_layers, hidden_dims, embed_dims, stack, key=key
        )
        for linear in (self.fc1, self.fc2):
            init_stack(linear, nn.init.xavier_uniform_)

    def forward(self, tokens: Tensor, layer: int) -> Tensor:
        """Transform each token separately.

        Args:
            tokens: (B, T, C).
            layer: Index of the layer, from 0.

        Returns:
            (B, T, C).
        """
        return self.fc2(F.gelu(self.fc1(tokens, layer)), layer)


class ViTEncoder(nn.Module):
    """N pre-norm layers of self-attention and feed-forward network.

    Source: DeiT (arXiv:2012.12877); LORS-DeiT (arXiv:2403.04303) with
    ``stacks`` in the mode ``lors``.

    Args:
        num_layers: Depth N.
        embed_dims: Size C of a token.
        num_heads: Number of attention heads.
        feedforward_channels: Hidden size of the feed-forward network.
        stacks: Where the weights of the layers come from: for ``attention``
            and ``ffn`` a dict with the fields of `StackConfig`. Without an
            entry the weights are dense.

    Raises:
        TypeError: If a size or an entry of ``stacks`` has a wrong type.
        ValueError: If a size, divisibility, mode, rank or name is wrong.
    """

    def __init__(
        self,
        num_layers: int,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        stacks: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            'num_layers': num_layers,
            'embed_dims': embed_dims,
            'num_heads': num_heads,
            'feedforward_channels': feedforward_channels,
        }
        check_at_least(1, **{f'model.{k}': v for k, v in sizes.items()})
        stacks = dict(stacks or {})
        unknown = sorted(set(stacks) - set(STACKS))
        if unknown:
            raise ValueError(
                f'model.stacks has {unknown}: expected keys out of '
                f'{list(STACKS)}'
            )
        self.num_layers = num_layers
        self.norm1 = StackedLayerNorm(num_layers, embed_dims, eps=NORM_EPS)
        self.attention = SelfAttention(
            num_layers, embed_dims, num_heads, stacks.get('attention')
        )
        self.norm2 = StackedLayerNorm(num_layers, embed_dims, eps=NORM_EPS)
        self.ffn = FeedForward(
            num_layers, embed_dims, feedforward_channels, stacks.get('ffn')
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Run all layers.

        Args:
            tokens: (B, T, C).

        Returns:
            (B, T, C), before the final norm.
        """
        for layer in range(self.num_layers):
            tokens = tokens + self.attention(self.norm1(tokens, layer), layer)
            tokens = tokens + self.ffn(self.norm2(tokens, layer), layer)
        return tokens


def init_stack(
    stack: StackedLinear, init_matrix: Callable[[Tensor], Tensor]
) -> None:
    """Initialise the dense or shared matrices of a stack, and set biases to 0.

    Low-rank factors keep the values that `StackedLinear` gives them.

    Args:
        stack: The stack.
        init_matrix: Fills a matrix in place.
    """
    for weight in stack.dense:
        init_matrix(weight)
    if stack.shared is not None:
        init_matrix(stack.shared)
    for bias in stack.bias:
        nn.init.zeros_(bias)
