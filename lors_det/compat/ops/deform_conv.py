# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution."""

from torch import Tensor

from lors_det.compat.ops.geometry import Geometry
from lors_det.compat.ops.recompute import gradients, working_dtype


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Compute a deformable convolution; shapes as in ``geometry``.

    Args:
        input: The features.
        weight: The kernel.
        offset: The shifts of the taps.
        output: Buffer, overwritten.
        columns: Unused; scratch of the compiled op.
        ones: Unused; scratch of the compiled op.
        kW: The kernel's width.
        kH: The kernel's height.
        dW: The stride, horizontally.
        dH: The stride, vertically.
        padW: The padding, horizontally.
        padH: The padding, vertically.
        dilationW: The dilation, horizontally.
        dilationH: The dilation, vertically.
        group: Groups of channels that are convolved apart.
        deformable_group: Groups of input channels with offsets of their own.
        im2col_step: Unused; how the compiled op splits the batch.

    Raises:
        ValueError: If a shape contradicts the sizes.
    """
    geometry = Geometry(
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    )
    geometry.check(input, offset, weight)
    dtype = working_dtype(input, weight, offset)
    tensors = (tensor.to(dtype) for tensor in (input, offset, weight))
    output.copy_(geometry.convolve(*tensors))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Compute the gradients of :func:`deform_conv_forward` but the weight's.

    Args:
        input: As in the forward op.
        offset: As in the forward op.
        gradOutput: The gradient in the output.
        gradInput: Buffer of the shape of ``input``, added to.
        gradOffset: Buffer of the shape of ``offset``, overwritten.
        weight: As in the forward op.
        columns: As in the forward op.
        kW: As in the forward op.
        kH: As in the forward op.
        dW: As in the forward op.
        dH: As in the forward op.
        padW: As in the forward op.
        padH: As in the forward op.
        dilationW: As in the forward op.
        dilationH: As in the forward op.
        group: As in the forward op.
        deformable_group: As in the forward op.
        im2col_step: As in the forward op.

    Raises:
        ValueError: If a shape contradicts the sizes.
    """
    geometry = Geometry(
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    )
    geometry.check(input, offset, weight)
    dtype = working_dtype(input, weight, offset)
    kernel = weight.detach().to(dtype)

    def convolve(input: Tensor, offset: Tensor) -> Tensor:
        return geometry.convolve(input, offset, kernel)

    grads = gradients(convolve, [input, offset], gradOutput, dtype)
    gradInput.add_(grads[0])
    gradOffset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Compute the gradient of :func:`deform_conv_forward` in its weight.

    Args:
        input: As in the forward op.
        offset: As in the forward op.
        gradOutput: The gradient in the output.
        gradWeight: Buffer of the shape of the weight; ``scale`` times the
            gradient is added to it.
        columns: As in the forward op.
        ones: As in the forward op.
        kW: As in the forward op.
        kH: As in the forward op.
        dW: As in the forward op.
        dH: As in the forward op.
        padW: As in the forward op.
        padH: As in the forward op.
        dilationW: As in the forward op.
        dilationH: As in the forward op.
        group: As in the forward op.
        deformable_group: As in the forward op.
        scale: The factor of the gradient.
        im2col_step: As in the forward op.

    Raises:
        ValueError: If a shape contradicts the sizes.
    """
    geometry = Geometry(
        (kH, kW),
        (dH, dW),
        (padH, padW),
        (dilationH, dilationW),
        group,
        deformable_group,
    )
    geometry.check(input, offset, gradWeight)
    dtype = working_dtype(input, offset, gradWeight)
    image, shifts = input.detach().to(dtype), offset.detach().to(dtype)

    def convolve(weight: Tensor) -> Tensor:
        return geometry.convolve(image, shifts, weight)

    # The output is linear in the weight, so any weight has its gradient.
    (grad,) = gradients(convolve, [gradWeight], gradOutput, dtype)
    gradWeight.add_(grad, alpha=scale)
