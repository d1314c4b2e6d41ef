# SPDX-License-Identifier: Apache-2.0
"""Adaptive 3D sampling: the points of the pyramid that a query looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.adamixer.geometry import at_least_float32, sizes_from_zr
from lors_det.adamixer.init import zero_weights
from lors_det.lors import StackedLinear

LEVEL_TAU = 2.0


def level_weights(z: Tensor, strides: Sequence[int]) -> Tensor:
    """Softly assign points to pyramid levels by their scale.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location
    sampling", level weights with tau = 2.

    Args:
        z: (...) log2 of a point's scale in pixels.
        strides: Stride of every level in pixels.

    Returns:
        (..., levels), which sums to 1 over the levels.
    """
    level = z.new_tensor([math.log2(stride) for stride in strides])
    distance = (z[..., None] - level) ** 2
    return (-distance / LEVEL_TAU).softmax(-1)


def sample_3d(
    feats: Sequence[Tensor], points: Tensor, strides: Sequence[int]
) -> Tensor:
    """Sample a feature pyramid at points of continuous position and scale.

    Bilinear in a level with zeros outside the (padded) map and pixel centres
    at half-integers, then a weighted sum over the levels.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location
    sampling", sampling in the 3D feature space.

    Args:
        feats: One (B, C, H_l, W_l) per level.
        points: (B, N, G, P, 3): x, y in pixels, z = log2 of the scale in
            pixels. Group g samples the g-th block of C/G channels.
        strides: Stride of every level in pixels.

    Returns:
        (B, N, G, P, C/G) in at least float32.

    Raises:
        ValueError: If the number of levels differs from that of the strides,
            or C is not divisible by G.
    """
    if len(feats) != len(strides):
        raise ValueError(
            f'decoder.strides={list(strides)}: the neck gives {len(feats)} '
            'levels, expected one stride for each'
        )
    batch, _, num_groups = points.shape[:3]
    if feats[0].shape[1] % num_groups:
        raise ValueError(
            f'{feats[0].shape[1]} feature channels are not divisible by '
            f'decoder.num_groups={num_groups}'
        )
    points = at_least_float32(points)
    weights = level_weights(points[..., 2], strides)  # (B, N, G, P, levels)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]
    xy = points[..., :2].transpose(1, 2).flatten(0, 1)  # (B * G, N, P, 2)

    sampled: Tensor | float = 0.0
    for level, (feat, stride) in enumerate(zip(feats, strides, strict=True)):
        height, width = feat.shape[-2:]
        size = xy.new_tensor([width * stride, height * stride])
        at_level = F.grid_sample(
            at_least_float32(feat).reshape(
                batch * num_groups, -1, height, width
            ),
            2 * xy / size - 1,
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )  # (B * G, C / G, N, P)
        sampled = sampled + at_level * weights[..., level]
    assert isinstance(sampled, Tensor)
    return sampled.unflatten(0, (batch, num_groups)).permute(0, 3, 1, 4, 2)


class AdaptiveSampling(nn.Module):
    """Sampling points that follow from content and position of a query.

    A linear map of the content gives offsets in units of the query's box, so
    that a point is (x + dx w, y + dy h, z + dz).

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location
    sampling".

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content.
        num_groups: Number G of channel groups.
        in_points: Number P_in of points of a group.
        strides: Stride of every pyramid level in pixels.
        stack: Where the stages' maps come from (`StackConfig`).
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        num_groups: int,
        in_points: int,
        strides: Sequence[int],
        stack: object = None,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.in_points = in_points
        self.strides = tuple(strides)
        self.offsets = StackedLinear(
            num_stages,
            embed_dims,
            num_groups * in_points * 3,
            stack,
            key='decoder.stacks.offsets',
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the AdaMixer release does.

        The offsets start as biases alone: one scale finer than the query,
        on a regular grid over the box if P_in is a square number, else
        uniformly at random in the box.
        """
        self.offsets.reset_parameters()
        zero_weights(self.offsets)
        side = math.isqrt(self.in_points)
        with torch.no_grad():
            for bias in self.offsets.bias:
                offset = bias.view(self.num_groups, self.in_points, 3)
                offset[..., 2] = -1.0
                if side**2 == self.in_points:
                    cell = (torch.arange(side) + 0.5) / side - 0.5
                    first, second = torch.meshgrid(cell, cell, indexing='ij')
                    offset[..., 0] = first.flatten().to(bias)
                    offset[..., 1] = second.flatten().to(bias)
                else:
                    offset[..., :2].uniform_(-0.5, 0.5)

    def points(self, content: Tensor, xyzr: Tensor, stage: int) -> Tensor:
        """Place the sampling points.

        Args:
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, G, P_in, 3): x, y in pixels, z = log2 of a scale in pixels.
        """
        offset = at_least_float32(self.offsets(content, stage))
        offset = offset.unflatten(-1, (self.num_groups, self.in_points, 3))
        unit = torch.cat(
            [sizes_from_zr(xyzr), torch.ones_like(xyzr[..., :1])], dim=-1
        )
        return xyzr[:, :, None, None, :3] + offset * unit[:, :, None, None]

    def forward(
        self,
        feats: Sequence[Tensor],
        content: Tensor,
        xyzr: Tensor,
        stage: int,
    ) -> Tensor:
        """Sample the pyramid for every query.

        Args:
            feats: One (B, C, H_l, W_l) per level.
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, G, P_in, C/G).
        """
        return sample_3d(
            feats, self.points(content, xyzr, stage), self.strides
        )
