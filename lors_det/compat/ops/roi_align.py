# SPDX-License-Identifier: Apache-2.0
"""RoIAlign with average pooling, by torchvision.

The arguments of the ops:

- ``input`` ``(B, C, H, W)``: the features;
- ``rois`` ``(K, 5)``: ``(batch index, x1, y1, x2, y2)``, in pixels of the
  image;
- ``output`` ``(K, C, aligned_height, aligned_width)``: the bins of each RoI;
- ``argmax_y`` and ``argmax_x``: for maximum pooling, which is not supported;
- ``aligned_height`` and ``aligned_width``: bins of a RoI;
- ``spatial_scale``: cells of the features per pixel of the image;
- ``sampling_ratio``: samples per bin along each axis; 0 for one per cell;
- ``pool_mode``: 0 for maximum, 1 for average;
- ``aligned``: whether the centre of the first cell is at 0.5 cells (True) or
  0 cells (False, with RoIs at least one cell wide and high).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lors_det.compat.mmcv_ext import MissingOpError
from lors_det.compat.ops.compute import compute, compute_gradients


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    **settings: Any,
) -> None:
    """Pool the features under each RoI, to ``output``."""
    pool = _pooling('roi_align_forward', rois, **settings)
    output.copy_(compute(pool, [input]))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **settings: Any,
) -> None:
    """Add the gradient in the features to ``grad_input``."""
    pool = _pooling('roi_align_backward', rois, **settings)
    # Average pooling is linear, so its gradient is the same at any features;
    # the compiled op does not get them either.
    zeros = torch.zeros_like(grad_input)
    (grad,) = compute_gradients(pool, [zeros], grad_output)
    grad_input.add_(grad)


def _pooling(
    op: str,
    rois: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Callable[[Tensor], Tensor]:
    if pool_mode != 1:
        raise MissingOpError(f"The op {op!r} with pool_mode 'max'")
    from torchvision.ops import roi_align

    size = aligned_height, aligned_width
    return lambda features: roi_align(
        features,
        rois.to(features.dtype),
        size,
        spatial_scale,
        sampling_ratio,
        aligned,
    )
