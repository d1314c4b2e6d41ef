# SPDX-License-Identifier: Apache-2.0
"""Adaptive 3D sampling: the points of the pyramid that a query looks at."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.adamixer.geometry import at_least_float32, sizes_from_zr
from lors_det.adamixer.init import zero_weights
from lors_det.lors import StackedLinear

LEVEL_TAU = 2.0


class Pyramid(NamedTuple):
    """A feature pyramid with all levels in one tensor.

    The layout of Deformable DETR's encoder, and its names.

    Args:
        value: (B, T, C), the positions of all levels, row by row; at least
            float32.
        spatial_shapes: (levels, 2) height and width of every level.
        level_start_index: (levels) index of the first position of a level.
        strides: (levels) in pixels.
    """

    value: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor
    strides: Tensor

    @classmethod
    def build(cls, feats: Sequence[Tensor], strides: Sequence[int]) -> Pyramid:
        """Lay out the levels.

        Args:
            feats: One (B, C, H_l, W_l) per level.
            strides: Stride of every level in pixels.

        Raises:
            ValueError: If the number of levels differs from that of the
                strides.
        """
        if len(feats) != len(strides):
            raise ValueError(
                f'decoder.strides={list(strides)}: the neck gives '
                f'{len(feats)} levels, expected one stride for each'
            )
        rows = [feat.flatten(2).transpose(1, 2) for feat in feats]
        value = torch.cat(rows, dim=1)
        value = at_least_float32(value)
        # Filled on the device: copying from the host would wait for it, and
        # cannot be recorded in a CUDA graph.
        heights, widths, strides_ = (
            torch.stack([value.new_full((), n, dtype=torch.long) for n in row])
            for row in (
                [feat.shape[2] for feat in feats],
                [feat.shape[3] for feat in feats],
                strides,
            )
        )
        sizes = heights * widths
        return cls(
            value,
            torch.stack([heights, widths], dim=-1),
            sizes.cumsum(0) - sizes,
            strides_,
        )


def level_weights(z: Tensor, strides: Tensor) -> Tensor:
    """Softly assign points to pyramid levels by their scale.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location
    sampling", level weights with tau = 2.

    Args:
        z: (...) log2 of a point's scale in pixels.
        strides: (levels) stride of every level in pixels.

    Returns:
        (..., levels), which sums to 1 over the levels.
    """
    distance = (z[..., None] - strides.to(z.dtype).log2()) ** 2
    return (-distance / LEVEL_TAU).softmax(-1)


def sample_3d(
    pyramid: Pyramid, points: Tensor, in_one_pass: bool = True
) -> Tensor:
    """Sample a feature pyramid at points of continuous position and scale.

    Bilinear in a level with zeros outside the (padded) map and pixel centres
    at half-integers, then a weighted sum over the levels: one weighted sum of
    4 positions of every level, gathered in one pass.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location
    sampling", sampling in the 3D feature space.

    Args:
        pyramid: With C channels.
        points: (B, N, G, P, 3): x, y in pixels, z = log2 of the scale in
            pixels. Group g samples the g-th block of C/G channels.
        in_one_pass: Whether gather and sum are one operator of torch, which
            other runtimes do not have.

    Returns:
        (B, N, G, P, C/G) in at least float32.

    Raises:
        ValueError: If C is not divisible by G.
    """
    points = at_least_float32(points)
    batch, _, num_groups = points.shape[:3]
    num_positions, channels = pyramid.value.shape[1:]
    if channels % num_groups:
        raise ValueError(
            f'{channels} feature channels are not divisible by '
            f'decoder.num_groups={num_groups}'
        )
    x, y, z = points.unbind(-1)
    heights, widths = pyramid.spatial_shapes.unbind(-1)
    columns, x_weights = _neighbours(x, pyramid.strides, widths)
    rows, y_weights = _neighbours(y, pyramid.strides, heights)
    y_weights = y_weights * level_weights(z, pyramid.strides)[..., None]

    # Group g of position t of image b is row (b T + t) G + g of the table.
    first = pyramid.level_start_index[:, None] + rows * widths[:, None]
    images = torch.arange(batch, device=points.device) * num_positions
    groups = torch.arange(num_groups, device=points.device)
    first = (first + images.view(-1, 1, 1, 1, 1, 1)) * num_groups
    first = first + groups.view(-1, 1, 1, 1)
    index = _outer(torch.add, first, columns * num_groups)
    weights = _outer(torch.mul, y_weights, x_weights)
    table = pyramid.value.view(-1, channels // num_groups)
    if in_one_pass:
        sampled = F.embedding_bag(
            index, table, per_sample_weights=weights, mode='sum'
        )
    else:
        sampled = weights[:, None] @ table[index]
    return sampled.view(*points.shape[:-1], -1)


def _outer(
    function: Callable[[Tensor, Tensor], Tensor], y: Tensor, x: Tensor
) -> Tensor:
    """Combine what belongs to 2 rows and to 2 columns.

    Args:
        function: Adds or multiplies.
        y: (B, N, G, P, levels, 2).
        x: (B, N, G, P, levels, 2).

    Returns:
        (B N G P, 4 levels).
    """
    # Flat first: OpenVINO's processors read beyond tensors of seven axes.
    y, x = y.flatten(0, 3), x.flatten(0, 3)
    return function(y[..., :, None], x[..., None, :]).flatten(1)


def _neighbours(
    coordinate: Tensor, strides: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the two positions next to a coordinate, on every level.

    Args:
        coordinate: (...) in pixels, along one axis.
        strides: (levels) in pixels.
        sizes: (levels) number of positions along the axis.

    Returns:
        Indices and weights (..., levels, 2); a position outside the map has
        the weight zero and the index of one inside.
    """
    at_level = coordinate[..., None] / strides - 0.5
    low = at_level.floor()
    share = at_level - low
    index = torch.stack([low, low + 1], dim=-1).long()
    weights = torch.stack([1 - share, share], dim=-1)
    last = sizes[:, None] - 1
    inside = (index >= 0) & (index <= last)
    return index.clamp(min=0).minimum(last), weights * inside


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
        stack: Where the stages' maps come from (`StackConfig`).

    Attributes:
        in_one_pass: See `sample_3d`.
    """

    in_one_pass = True

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        num_groups: int,
        in_points: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.in_points = in_points
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
        self, pyramid: Pyramid, content: Tensor, xyzr: Tensor, stage: int
    ) -> Tensor:
        """Sample the pyramid for every query.

        Args:
            pyramid: What to sample.
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            (B, N, G, P_in, C/G).
        """
        points = self.points(content, xyzr, stage)
        return sample_3d(pyramid, points, self.in_one_pass)
