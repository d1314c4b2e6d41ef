# SPDX-License-Identifier: Apache-2.0
"""Modulated deformable convolution."""

import math

from torch import Tensor

from lors_det.compat.ops.geometry import Geometry
from lors_det.compat.ops.recompute import gradients, working_dtype


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Compute a modulated deformable convolution; shapes as in ``geometry``.

    Args:
        input: The features.
        weight: The kernel.
        bias: ``(O,)``, or of any shape without one.
        ones: Unused; scratch of the compiled op.
        offset: The shifts of the taps. If its height and width are not the
            output's, the first entries of each image are read as if they
            were, as the compiled op does; mmdet's DyHead relies on it.
        mask: The factors of the taps, read likewise.
        output: Buffer, overwritten.
        columns: Unused; scratch of the compiled op.
        kernel_h: The kernel's height.
        kernel_w: The kernel's width.
        stride_h: The stride, vertically.
        stride_w: The stride, horizontally.
        pad_h: The padding, vertically.
        pad_w: The padding, horizontally.
        dilation_h: The dilation, vertically.
        dilation_w: The dilation, horizontally.
        group: Groups of channels that are convolved apart.
        deformable_group: Groups of input channels with offsets of their own.
        with_bias: Whether ``bias`` is added.

    Raises:
        ValueError: If a shape contradicts the sizes, or an offset or mask is
            too small.
    """
    geometry = Geometry(
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    )
    geometry.check(input, offset, weight)
    inputs = [input, offset, weight, mask, *([bias] if with_bias else [])]
    dtype = working_dtype(*inputs)
    tensors = (tensor.to(dtype) for tensor in inputs)
    output.copy_(_convolve(geometry, output, *tensors))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Compute the gradients of :func:`modulated_deform_conv_forward`.

    Args:
        input: As in the forward op.
        weight: As in the forward op.
        bias: As in the forward op.
        ones: As in the forward op.
        offset: As in the forward op.
        mask: As in the forward op.
        columns: As in the forward op.
        grad_input: Buffer of the shape of ``input``, added to.
        grad_weight: Buffer of the shape of ``weight``, added to.
        grad_bias: Buffer of the shape of ``bias``, added to if there is one.
        grad_offset: Buffer of the shape of ``offset``, overwritten.
        grad_mask: Buffer of the shape of ``mask``, overwritten.
        grad_output: The gradient in the output.
        kernel_h: As in the forward op.
        kernel_w: As in the forward op.
        stride_h: As in the forward op.
        stride_w: As in the forward op.
        pad_h: As in the forward op.
        pad_w: As in the forward op.
        dilation_h: As in the forward op.
        dilation_w: As in the forward op.
        group: As in the forward op.
        deformable_group: As in the forward op.
        with_bias: As in the forward op.

    Raises:
        ValueError: If a shape contradicts the sizes, or an offset or mask is
            too small.
    """
    geometry = Geometry(
        (kernel_h, kernel_w),
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        group,
        deformable_group,
    )
    geometry.check(input, offset, weight)
    inputs = [input, offset, weight, mask, *([bias] if with_bias else [])]

    def convolve(*tensors: Tensor) -> Tensor:
        return _convolve(geometry, grad_output, *tensors)

    grads = gradients(convolve, inputs, grad_output, working_dtype(*inputs))
    grad_input.add_(grads[0])
    grad_offset.copy_(grads[1])
    grad_weight.add_(grads[2])
    grad_mask.copy_(grads[3])
    if with_bias:
        grad_bias.add_(grads[4])


def _convolve(
    geometry: Geometry,
    like: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the convolution, of the shape of ``like``."""
    height, width = like.shape[2:]
    taps = geometry.deform_groups * math.prod(geometry.kernel)
    return geometry.convolve(
        input,
        _as_shape(offset, (2 * taps, height, width)),
        weight,
        _as_shape(mask, (taps, height, width)),
        bias,
    )


def _as_shape(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return ``(B, *shape)`` from the first entries of each image."""
    entries = math.prod(shape)
    flat = tensor.flatten(1)
    if flat.shape[1] < entries:
        raise ValueError(
            f'expected at least {shape} per image, got '
            f'{tuple(tensor.shape[1:])}'
        )
    return flat[:, :entries].reshape(flat.shape[0], *shape)
