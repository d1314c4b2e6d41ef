# SPDX-License-Identifier: Apache-2.0
"""RoIAlign with average pooling, by torchvision."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lors_det.compat.missing import missing_op_error
from lors_det.compat.ops.compute import compute, compute_gradients


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    **settings: Any,
) -> None:
    """Pool the features under each RoI to a grid of fixed size.

    Args:
        input: ``(B, C, H, W)`` features.
        rois: ``(K, 5)`` as ``(batch index, x1, y1, x2, y2)``, the box in
            pixels of the image.
        output: ``(K, C, aligned_height, aligned_width)`` buffer, overwritten.
        argmax_y: Unused; for maximum pooling.
        argmax_x: Unused; for maximum pooling.
        settings: See `_pooling`.

    Raises:
        MissingOpError: For maximum pooling.
    """
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
    """Add the gradient of :func:`roi_align_forward` in its features.

    Args:
        grad_output: ``(K, C, aligned_height, aligned_width)``.
        rois: As in the forward op.
        argmax_y: Unused; for maximum pooling.
        argmax_x: Unused; for maximum pooling.
        grad_input: ``(B, C, H, W)`` buffer, added to.
        settings: See `_pooling`.

    Raises:
        MissingOpError: For maximum pooling.
    """
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
    """Return the pooling of features under RoIs as a function.

    Args:
        op: Name of the op, for the error message.
        rois: As in the ops.
        aligned_height: Bins per RoI, vertically.
        aligned_width: Bins per RoI, horizontally.
        spatial_scale: Cells of the features per pixel of the image.
        sampling_ratio: Samples per bin along each axis; 0 for one per cell.
        pool_mode: 0 for maximum, 1 for average.
        aligned: Whether the centre of the first cell is at 0.5 cells (True)
            or 0 cells (False, with RoIs at least one cell wide and high).
    """
    if pool_mode != 1:
        raise missing_op_error(f"The op {op!r} with pool_mode 'max'")
    # torchvision is slow to import, and only some ops need it.
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
