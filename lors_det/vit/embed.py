# SPDX-License-Identifier: Apache-2.0
"""From images to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors.config import check_at_least


class PatchEmbedding(nn.Module):
    """Patches through a linear map, a class token, and positions.

    Source: DeiT (arXiv:2012.12877). The table of positions belongs to images
    of ``img_size``; for another size it is resized like an image.

    Args:
        img_size: Side of the square images that the table is for, in pixels.
        patch_size: Side P of the square patches, in pixels.
        in_channels: Channels of an image.
        embed_dims: Size C of a token.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is below 1, or patches do not fill the image.
    """

    def __init__(
        self, img_size: int, patch_size: int, in_channels: int, embed_dims: int
    ) -> None:
        super().__init__()
        sizes = {
            'img_size': img_size,
            'patch_size': patch_size,
            'in_channels': in_channels,
            'embed_dims': embed_dims,
        }
        check_at_least(1, **{f'model.{k}': v for k, v in sizes.items()})
        if img_size % patch_size:
            raise ValueError(
                f'model.patch_size={patch_size}: expected a divisor of '
                f'model.img_size={img_size}'
            )
        self.patch_size = patch_size
        self.grid_size = img_size // patch_size
        self.projection = nn.Conv2d(
            in_channels, embed_dims, patch_size, stride=patch_size
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        num_tokens = 1 + self.grid_size**2
        self.position_table = nn.Parameter(
            torch.empty(1, num_tokens, embed_dims)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values.

        Patches: N(0, 1 / fan_in), bias 0. Positions: N(0, 0.02). Class token:
        0; its entry of the table makes it different from other tokens.
        """
        weight = self.projection.weight
        nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        assert self.projection.bias is not None
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.class_token)
        nn.init.trunc_normal_(self.position_table, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Embed a batch.

        Args:
            images: (B, in_channels, H, W) normalised.

        Returns:
            (B, 1 + H / P * W / P, C): the class token, then patches row by
            row.

        Raises:
            ValueError: If patches do not fill the images.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f'images of {height} x {width} pixels: expected multiples of '
                f'model.patch_size={self.patch_size}'
            )
        patches = self.projection(images)  # (B, C, H / P, W / P)
        positions = self.positions(*patches.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(tokens), -1, -1)
        return torch.cat([first, tokens], dim=1) + positions

    def positions(self, rows: int, cols: int) -> Tensor:
        """The table for a grid of patches; the class entry is kept.

        Args:
            rows: H / P.
            cols: W / P.

        Returns:
            (1, 1 + rows * cols, C).
        """
        size = (self.grid_size, self.grid_size)
        if (rows, cols) == size:
            return self.position_table
        first, grid = self.position_table.tensor_split([1], dim=1)
        grid = grid.transpose(1, 2).unflatten(2, size)  # (1, C, side, side)
        grid = F.interpolate(
            grid, (rows, cols), mode='bicubic', align_corners=False
        )
        return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
