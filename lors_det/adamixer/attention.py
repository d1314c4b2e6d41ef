# SPDX-License-Identifier: Apache-2.0
"""Self-attention between queries, biased by the overlap of their boxes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.adamixer.geometry import (
    decode_xyzr,
    intersection_over_foreground,
    position_embedding,
)
from lors_det.adamixer.init import xavier_reset
from lors_det.lors import StackedLayerNorm, StackedLinear

IOF_EPS = 1e-7


class QueryAttention(nn.Module):
    """Self-attention of all stages: position-aware, IoF-biased.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector",
    position-aware multi-head self-attention. Query, key, value *and the
    residual* are the content plus the position embedding.

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content, divisible by 8 and by H.
        num_heads: Number of attention heads H.
        stack: Where the projections of the stages come from (`StackConfig`).
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        num_heads: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_heads = num_heads
        key = 'decoder.stacks.attention'
        self.in_proj = StackedLinear(
            num_stages, embed_dims, 3 * embed_dims, stack, key=key
        )
        self.out_proj = StackedLinear(
            num_stages, embed_dims, embed_dims, stack, key=key
        )
        self.iof_tau = nn.ParameterList(
            torch.empty(num_heads) for _ in range(num_stages)
        )
        self.norm = StackedLayerNorm(num_stages, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the AdaMixer release does."""
        xavier_reset(self.in_proj)
        xavier_reset(self.out_proj)
        for bias in self.in_proj.bias:
            nn.init.zeros_(bias)
        for tau in self.iof_tau:
            nn.init.uniform_(tau, 0, 4)
        self.norm.reset_parameters()

    def forward(self, content: Tensor, xyzr: Tensor, stage: int) -> Tensor:
        """Attend; positions get no gradient from here.

        Args:
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, C) attended content, normalised.
        """
        content, xyzr = self._with_position(content, xyzr)
        q, k, v, bias = self._project(content, xyzr, stage)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.to(q.dtype)
        )
        attended = attended.transpose(1, 2).flatten(2)  # (B, N, C)
        return self.norm(content + self.out_proj(attended, stage), stage)

    def weights(self, content: Tensor, xyzr: Tensor, stage: int) -> Tensor:
        """Compute how much each query attends to each; to look at.

        Args:
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            (B, H, N, N); each row sums to 1.
        """
        q, k, _, bias = self._project(
            *self._with_position(content, xyzr), stage
        )
        return (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)

    def _with_position(
        self, content: Tensor, xyzr: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the position to the content; no gradient goes to positions."""
        xyzr = xyzr.detach()
        return content + position_embedding(xyzr, self.embed_dims), xyzr

    def _project(
        self, content: Tensor, xyzr: Tensor, stage: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, k, v, each (B, H, N, C/H), and the bias (B, H, N, N)."""
        iof = intersection_over_foreground(decode_xyzr(xyzr))
        tau = self.iof_tau[stage][:, None, None]
        bias = tau * (iof + IOF_EPS).log()[:, None]
        q, k, v = (
            self.in_proj(content, stage)
            .unflatten(-1, (3, self.num_heads, -1))
            .permute(2, 0, 3, 1, 4)  # (3, B, H, N, C / H)
        )
        return q, k, v, bias
