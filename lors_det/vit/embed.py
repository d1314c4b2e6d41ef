# SPDX-License-Identifier: Apache-2.0
"""From images to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors.config import check_at_least


class PatchEmbedding(nn.Module):
    """Linear patch embedding, class token and position embedding.

    Source: DeiT (arXiv:2012.12877).

    Args:
        img_size: Side of the square images that the position embedding is
            learnt for, in pixels; for another size it is interpolated.
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
        self.proj = nn.Conv2d(
            in_channels, embed_dims, patch_size, stride=patch_size
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dims))
        num_tokens = 1 + self.grid_size**2
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, embed_dims))
        fan_in = in_channels * patch_size**2
        nn.init.normal_(self.proj.weight, std=1 / math.sqrt(fan_in))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)
        # 0, because it has a position embedding of its own.
        nn.init.zeros_(self.cls_token)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images into tokens.

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
        patches = self.proj(images)  # (B, C, H / P, W / P)
        pos_embed = self.resize_pos_embed(*patches.shape[-2:])
        tokens = patches.flatten(2).transpose(1, 2)
        cls_token = self.cls_token.expand(len(tokens), -1, -1)
        return torch.cat([cls_token, tokens], dim=1) + pos_embed

    def resize_pos_embed(self, rows: int, cols: int) -> Tensor:
        """Interpolate the position embedding, but not the class token's.

        Args:
            rows: H / P.
            cols: W / P.

        Returns:
            (1, 1 + rows * cols, C).
        """
        size = (self.grid_size, self.grid_size)
        if (rows, cols) == size:
            return self.pos_embed
        cls_embed, grid = self.pos_embed.tensor_split([1], dim=1)
        grid = grid.transpose(1, 2).unflatten(2, size)  # (1, C, side, side)
        grid = F.interpolate(
            grid, (rows, cols), mode='bicubic', align_corners=False
        )
        return torch.cat([cls_embed, grid.flatten(2).transpose(1, 2)], dim=1)
