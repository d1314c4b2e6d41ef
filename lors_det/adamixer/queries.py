# SPDX-License-Identifier: Apache-2.0
"""The queries that the decoder starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.adamixer.geometry import encode_boxes


class InitialQueries(nn.Module):
    """A learnt table of contents; every position is the whole image.

    Source: AdaMixer (arXiv:2203.16507), "Object query definition". The
    release keeps the boxes in a parameter that never gets a gradient; here
    they are a buffer.

    Args:
        num_queries: Number N of queries.
        embed_dims: Size C of a query's content.
    """

    boxes: Tensor

    def __init__(self, num_queries: int, embed_dims: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.empty(num_queries, embed_dims))
        # (cx, cy, w, h) relative to the image.
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_queries, 1)
        self.register_buffer('boxes', boxes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the contents from N(0, 1), as the release does."""
        nn.init.normal_(self.content)

    def forward(self, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Queries for a batch of images.

        Args:
            image_sizes: (B, 2) width and height in pixels of the resized,
                un-padded images.

        Returns:
            (B, N, C) content, each row normalised, and (B, N, 4) xyzr.
        """
        centre, size = self.boxes.to(image_sizes).split(2, dim=-1)
        boxes = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
        boxes = boxes * image_sizes.repeat(1, 2)[:, None]  # (B, N, 4)
        content = F.layer_norm(self.content, (int(self.content.shape[-1]),))
        return content.expand(boxes.shape[0], -1, -1), encode_boxes(boxes)
