# SPDX-License-Identifier: Apache-2.0
"""Query positions (x, y, z, r): boxes, refinement, embedding, overlap.

Source: AdaMixer (arXiv:2203.16507), "Object query definition" for the
positions, "Overall AdaMixer detector" for embedding and overlap.
A position is (x, y) of the box centre in pixels of the resized, un-padded
image, z = log2(sqrt(w h)) and r = log2(h / w).
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Promote half precision to float32; leave float32 and float64 alone.

    Geometry, sampling coordinates, matching and losses are computed in at
    least this precision also under autocast.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def sizes_from_zr(xyzr: Tensor) -> Tensor:
    """Width and height of query boxes.

    Args:
        xyzr: (..., 4).

    Returns:
        (..., 2) w, h in pixels.
    """
    z, r = xyzr[..., 2:3], xyzr[..., 3:4]
    return torch.cat([2 ** (z - r / 2), 2 ** (z + r / 2)], dim=-1)


def decode_xyzr(xyzr: Tensor) -> Tensor:
    """Turn query positions into corner boxes.

    Args:
        xyzr: (..., 4).

    Returns:
        (..., 4) x1, y1, x2, y2 in pixels, not clipped to the image.

    Raises:
        ValueError: If the last size is not 4.
    """
    if xyzr.shape[-1] != 4:
        raise ValueError(
            f'xyzr of shape {tuple(xyzr.shape)}: expected (.., 4)'
        )
    centre, half = xyzr[..., :2], sizes_from_zr(xyzr) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def encode_boxes(boxes: Tensor) -> Tensor:
    """Turn corner boxes into query positions.

    Args:
        boxes: (..., 4) x1, y1, x2, y2 in pixels, of positive size.

    Returns:
        (..., 4) xyzr.
    """
    top_left, bottom_right = boxes[..., :2], boxes[..., 2:]
    centre = (top_left + bottom_right) / 2
    w, h = (bottom_right - top_left).split(1, dim=-1)
    return torch.cat([centre, (w * h).log2() / 2, (h / w).log2()], dim=-1)


def refine_xyzr(xyzr: Tensor, delta: Tensor) -> Tensor:
    """Move query positions by what the regression branch predicts.

    The centre moves in units of the box scale 2^z, the same for x and y.

    Args:
        xyzr: (..., 4).
        delta: (..., 4) raw output of the regression branch.

    Returns:
        (..., 4) refined xyzr; nothing is clipped.
    """
    scale = 2 ** xyzr[..., 2:3]
    centre = xyzr[..., :2] + delta[..., :2] * scale
    return torch.cat([centre, xyzr[..., 2:] + delta[..., 2:]], dim=-1)


def position_embedding(xyzr: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of query positions.

    Args:
        xyzr: (..., 4).
        dim: Size C of the embedding, divisible by 8.

    Returns:
        (..., C): blocks of C/4 for x/1000, y/1000, z, r; in a block sine and
        cosine interleave and pair j has the frequency 10000^(-2j / (C/4)).
    """
    unit = torch.cat([xyzr[..., :2] / 1000, xyzr[..., 2:]], dim=-1)
    block = dim // 4
    exponent = (
        torch.arange(0, block, 2, dtype=xyzr.dtype, device=xyzr.device) / block
    )
    angle = unit[..., None] * 10000**-exponent  # (..., 4, C/8)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def intersection_over_foreground(boxes: Tensor) -> Tensor:
    """Compute which part of each box lies inside each other box.

    Args:
        boxes: (B, N, 4) x1, y1, x2, y2 in pixels.

    Returns:
        (B, N, N): area of the intersection of i and j over the area of i.
    """
    top_left = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    bottom_right = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    # The release's floor against division by zero.
    return intersection / area.clamp(min=1e-6)[..., None]
