# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, plain and modulated, by torchvision.

The arguments of the ops, with ``G`` deformable groups and a kernel of
``kh x kw`` taps, each a bilinear sample of the input with zeros outside it:

- ``input`` ``(B, C, H, W)``, ``weight`` ``(O, C / group, kh, kw)``, ``bias``
  ``(O,)`` (ignored without ``with_bias``), ``output`` ``(B, O, H', W')``;
- ``offset`` ``(B, 2 * G * kh * kw, H', W')``: for each group and tap its shift
  ``(dy, dx)`` in cells;
- ``mask`` ``(B, G * kh * kw, H', W')``: the factor of each tap;
- ``columns`` and ``ones``: scratch memory of the compiled ops, unused;
- ``sizes``: kernel, stride, padding and dilation in cells, ``group`` and
  ``deformable_group``.

A modulated op reads the first entries of each image's offset and mask if they
are larger than the output, as the compiled op does; mmdet's DyHead relies on
it. Gradients of offsets and masks are written to their buffers, all others
added. All ops raise a ValueError if shapes and sizes contradict each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from lors_det.compat.ops.compute import compute, compute_gradients


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Write the deformable convolution to ``output``."""
    convolve = _convolution(sizes, output.shape[2:])
    output.copy_(compute(convolve, [input, offset, weight]))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Compute the gradients in the input and the offset."""
    convolve = _convolution(sizes, gradOutput.shape[2:])
    inputs = [input, offset, weight]
    grads = compute_gradients(convolve, inputs, gradOutput)
    gradInput.add_(grads[0])
    gradOffset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **sizes: int,
) -> None:
    """Compute ``scale`` times the gradient in the weight."""
    convolve = _convolution(sizes, gradOutput.shape[2:])
    # The output is linear in the weight, so any weight has its gradient.
    inputs = [input, offset, gradWeight]
    grads = compute_gradients(convolve, inputs, gradOutput)
    gradWeight.add_(grads[2], alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Write the modulated deformable convolution to ``output``."""
    convolve = _convolution(sizes, output.shape[2:])
    biases = [bias] if sizes['with_bias'] else []
    inputs = [input, offset, weight, mask, *biases]
    output.copy_(compute(convolve, inputs))


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
    **sizes: int,
) -> None:
    """Compute all gradients of the modulated convolution."""
    convolve = _convolution(sizes, grad_output.shape[2:])
    biases = [bias] if sizes['with_bias'] else []
    inputs = [input, offset, weight, mask, *biases]
    grads = compute_gradients(convolve, inputs, grad_output)
    grad_input.add_(grads[0])
    grad_offset.copy_(grads[1])
    grad_weight.add_(grads[2])
    grad_mask.copy_(grads[3])
    if biases:
        grad_bias.add_(grads[4])


def _convolution(
    sizes: Mapping[str, int], output_size: Sequence[int]
) -> Callable[..., Tensor]:
    from torchvision.ops import deform_conv2d

    if 'kernel_h' in sizes:  # the names of the modulated ops
        names, axes = ('kernel', 'stride', 'pad', 'dilation'), ('_h', '_w')
    else:
        names, axes = ('k', 'd', 'pad', 'dilation'), ('H', 'W')
    kernel, stride, padding, dilation = (
        (sizes[name + axes[0]], sizes[name + axes[1]]) for name in names
    )
    shifts = 2 * sizes['deformable_group'] * math.prod(kernel)

    def convolve(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        # torchvision infers the groups from the shapes.
        _check('input channels', input, weight.shape[1] * sizes['group'])
        _check('offset channels', offset, shifts)
        if mask is not None:
            offset = _first_entries(offset, (shifts, *output_size))
            mask = _first_entries(mask, (shifts // 2, *output_size))
        output: Tensor = deform_conv2d(
            input, offset, weight, bias, stride, padding, dilation, mask
        )
        return output

    return convolve


def _check(name: str, tensor: Tensor, channels: int) -> None:
    if tensor.shape[1] != channels:
        raise ValueError(f'{name}: expected {channels}, got {tensor.shape[1]}')


def _first_entries(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the first entries of each image as ``(B, *shape)``."""
    entries = math.prod(shape)
    flat = tensor.flatten(1)
    if flat.shape[1] < entries:
        raise ValueError(
            f'expected at least {shape} per image, got '
            f'{tuple(tensor.shape[1:])}'
        )
    return flat[:, :entries].reshape(len(flat), *shape)
