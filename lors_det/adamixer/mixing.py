# SPDX-License-Identifier: Apache-2.0
"""Adaptive mixing: channels and points of what a query sampled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lors_det.adamixer.init import xavier_reset
from lors_det.lors import AdaptiveStack, StackedLayerNorm, StackedLinear


class AdaptiveMixing(nn.Module):
    """Channel mixing, spatial mixing and output projection of all stages.

    The mixing matrices are generated from the query. Dense stacks make it
    AdaMixer's, stacks in the mode ``lors`` make it that of LORS.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive content decoding";
    LORS (arXiv:2403.04303), its application to AdaMixer.

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content and of a sampled feature.
        num_groups: Number G of channel groups.
        in_points: Number P_in of sampled points of a group.
        out_points: Number P_out of points after spatial mixing.
        kernels: Where the generated matrices come from (`StackConfig`).
        out_proj: Where the output projection comes from (`StackConfig`).
        with_cp: Whether training recomputes the mixing in the backward pass
            instead of keeping matrices and activations.
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        num_groups: int,
        in_points: int,
        out_points: int,
        kernels: object = None,
        out_proj: object = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        width = embed_dims // num_groups
        key = 'decoder.stacks.mixing_kernels'
        self.channel = AdaptiveStack(
            num_stages, embed_dims, num_groups, width, width, kernels, key
        )
        self.spatial = AdaptiveStack(
            num_stages, embed_dims, num_groups, out_points, in_points,
            kernels, key,
        )  # fmt: skip
        self.out_proj = StackedLinear(
            num_stages,
            embed_dims * out_points,
            embed_dims,
            out_proj,
            key='decoder.stacks.mixing_out_proj',
        )
        self.norm = StackedLayerNorm(num_stages, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the releases do.

        Only AdaMixer's dense output projection follows Xavier's law; that
        of LORS is drawn like ``nn.Linear``.
        """
        self.channel.reset_parameters()
        self.spatial.reset_parameters()
        self.out_proj.reset_parameters()
        if self.out_proj.dense:
            xavier_reset(self.out_proj)
        self.norm.reset_parameters()

    def forward(self, sampled: Tensor, content: Tensor, stage: int) -> Tensor:
        """Mix, project, and add to the query's content.

        Args:
            sampled: (B, N, G, P_in, C/G).
            content: (B, N, C) query content.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, C) new content, normalised.
        """
        if self.with_cp and torch.is_grad_enabled():
            mixed = checkpoint(
                self.mix, sampled, content, stage,
                use_reentrant=False, preserve_rng_state=False,
            )  # fmt: skip
        else:
            mixed = self.mix(sampled, content, stage)
        return self.norm(content + mixed, stage)

    def mix(self, sampled: Tensor, content: Tensor, stage: int) -> Tensor:
        """Return what the mixing adds to the content.

        Args:
            sampled: (B, N, G, P_in, C/G).
            content: (B, N, C) query content.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, C).
        """
        # Matrices are used where they are generated, while caches hold them.
        x = sampled @ self.channel(content, stage)  # (B, N, G, P_in, C/G)
        x = normalise(x).relu_()
        x = self.spatial(content, stage) @ x  # (B, N, G, P_out, C/G)
        x = normalise(x).relu_()
        return self.out_proj(x.flatten(2), stage)


def normalise(x: Tensor) -> Tensor:
    """Layer normalisation over points and channels jointly, without affine.

    Args:
        x: (..., points, channels).

    Returns:
        The same shape.
    """
    points, channels = map(int, x.shape[-2:])  # exporters take no others
    return F.layer_norm(x, (points, channels))
