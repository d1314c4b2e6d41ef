# SPDX-License-Identifier: Apache-2.0
"""RoIAlign with average pooling, through torchvision."""

import torch
from torch import Tensor

from lors_det.compat.missing import missing_op_error
from lors_det.compat.ops.recompute import gradients, working_dtype

_AVERAGE = 1


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool the features under each RoI to a grid of fixed size.

    Args:
        input: ``(B, C, H, W)`` features.
        rois: ``(K, 5)`` as ``(batch index, x1, y1, x2, y2)``, the box in
            pixels of the image.
        output: ``(K, C, aligned_height, aligned_width)`` buffer, overwritten.
        argmax_y: Unused; for maximum pooling.
        argmax_x: Unused; for maximum pooling.
        aligned_height: Bins per RoI, vertically.
        aligned_width: Bins per RoI, horizontally.
        spatial_scale: Cells of ``input`` per pixel of the image.
        sampling_ratio: Samples per bin along each axis; 0 for one per cell.
        pool_mode: 0 for maximum, 1 for average.
        aligned: Whether the centre of the first cell is at 0.5 cells (True)
            or 0 cells (False, with RoIs at least one cell wide and high).

    Raises:
        MissingOpError: For maximum pooling.
    """
    _check_mode('roi_align_forward', pool_mode)
    dtype = working_dtype(input, rois)
    pooled = _pool(
        input.to(dtype),
        rois.to(dtype),
        (aligned_height, aligned_width),
        spatial_scale,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward` in its features.

    Args:
        grad_output: ``(K, C, aligned_height, aligned_width)``.
        rois: As in the forward op.
        argmax_y: Unused; for maximum pooling.
        argmax_x: Unused; for maximum pooling.
        grad_input: ``(B, C, H, W)`` buffer, added to.
        aligned_height: As in the forward op.
        aligned_width: As in the forward op.
        spatial_scale: As in the forward op.
        sampling_ratio: As in the forward op.
        pool_mode: As in the forward op.
        aligned: As in the forward op.

    Raises:
        MissingOpError: For maximum pooling.
    """
    _check_mode('roi_align_backward', pool_mode)
    dtype = working_dtype(grad_output, rois)

    def pool(features: Tensor) -> Tensor:
        return _pool(
            features,
            rois.to(dtype),
            (aligned_height, aligned_width),
            spatial_scale,
            sampling_ratio,
            aligned,
        )

    # Average pooling is linear, so its gradient is the same at any features;
    # the compiled op does not get them.
    zeros = torch.zeros_like(grad_input)
    (grad,) = gradients(pool, [zeros], grad_output, dtype)
    grad_input.add_(grad)


def _check_mode(op: str, pool_mode: int) -> None:
    """Raise unless the mode is average pooling."""
    if pool_mode != _AVERAGE:
        raise missing_op_error(f"The op {op!r} with pool_mode 'max'")


def _pool(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    scale: float,
    samples: int,
    aligned: bool,
) -> Tensor:
    """Pool ``(B, C, H, W)`` under ``(K, 5)`` to ``(K, C, *size)``."""
    # Here and not above: torchvision is slow to import, and only some ops
    # need it.
    from torchvision.ops import roi_align

    pooled: Tensor = roi_align(features, rois, size, scale, samples, aligned)
    return pooled
