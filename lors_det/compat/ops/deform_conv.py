# SPDX-License-Identifier: Apache-2.0
"""Deformable convolution, plain and modulated, by torchvision.

Throughout, ``input`` is ``(B, C, H, W)``, ``weight`` ``(O, C / group, kh,
kw)``, the output ``(B, O, H', W')``, and with ``G`` deformable groups
``offset`` is ``(B, 2 * G * kh * kw, H', W')``, for each group and tap the
shift ``(dy, dx)`` in cells, and ``mask`` ``(B, G * kh * kw, H', W')`` the
factor of each tap. A tap is a bilinear sample of the input, with zeros
outside it. ``columns`` and ``ones`` are scratch memory of the compiled ops
and unused here.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lors_det.compat.ops.compute import compute, compute_gradients

#: Names of kernel, stride, padding and dilation, (vertical, horizontal), among
#: the arguments of the plain and of the modulated ops.
PLAIN = (
    ('kH', 'kW'), ('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW'),
)  # fmt: skip
MODULATED = tuple(
    (f'{name}_h', f'{name}_w')
    for name in ('kernel', 'stride', 'pad', 'dilation')
)


class DeformConv:
    """A deformable convolution.

    Args:
        names: `PLAIN` or `MODULATED`.
        sizes: Sizes in cells under these names, ``group`` and
            ``deformable_group``.
    """

    def __init__(
        self, names: Sequence[tuple[str, str]], sizes: Mapping[str, int]
    ) -> None:
        self.kernel, self.stride, self.padding, self.dilation = (
            (sizes[vertical], sizes[horizontal])
            for vertical, horizontal in names
        )
        self.groups = sizes['group']
        self.deform_groups = sizes['deformable_group']

    def __call__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return the output; all tensors are of one dtype.

        Args:
            input: The features.
            offset: The shifts of the taps.
            weight: The kernel.
            mask: The factors of the taps, 1 by default. With a mask, offset
                and mask may be larger; their first entries are used.
            bias: ``(O,)``, 0 by default.

        Raises:
            ValueError: If the shapes contradict the sizes, or an offset or
                mask is too small.
        """
        # torchvision is slow to import, and only some ops need it.
        from torchvision.ops import deform_conv2d

        # torchvision infers the groups from the shapes, so it would not notice
        # a contradiction.
        shifts = 2 * self.deform_groups * math.prod(self.kernel)
        for name, found, expected in (
            ('input channels', input.shape[1], weight.shape[1] * self.groups),
            ('offset channels', offset.shape[1], shifts),
        ):
            if found != expected:
                raise ValueError(f'{name}: expected {expected}, got {found}')
        if mask is not None:
            height, width = self._output_size(input)
            offset = _first_entries(offset, (shifts, height, width))
            mask = _first_entries(mask, (shifts // 2, height, width))
        output: Tensor = deform_conv2d(
            input,
            offset,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            mask,
        )
        return output

    def _output_size(self, input: Tensor) -> list[int]:
        """Return the height and width of the output, in cells."""
        return [
            (input.shape[2 + i] + 2 * self.padding[i]
             - self.dilation[i] * (self.kernel[i] - 1) - 1)
            // self.stride[i] + 1
            for i in range(2)
        ]  # fmt: skip


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Compute a deformable convolution.

    Args:
        input: The features.
        weight: The kernel.
        offset: The shifts of the taps.
        output: Buffer, overwritten.
        columns: Unused.
        ones: Unused.
        sizes: See `DeformConv`.

    Raises:
        ValueError: If the shapes contradict the sizes.
    """
    output.copy_(compute(DeformConv(PLAIN, sizes), [input, offset, weight]))


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
    """Compute the gradients of :func:`deform_conv_forward` but the weight's.

    Args:
        input: As in the forward op.
        offset: As in the forward op.
        gradOutput: The gradient in the output.
        gradInput: Buffer of the shape of ``input``, added to.
        gradOffset: Buffer of the shape of ``offset``, overwritten.
        weight: As in the forward op.
        columns: Unused.
        sizes: See `DeformConv`.

    Raises:
        ValueError: If the shapes contradict the sizes.
    """
    inputs = [input, offset, weight]
    grads = compute_gradients(DeformConv(PLAIN, sizes), inputs, gradOutput)
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
    """Compute the gradient of :func:`deform_conv_forward` in its weight.

    Args:
        input: As in the forward op.
        offset: As in the forward op.
        gradOutput: The gradient in the output.
        gradWeight: Buffer of the shape of the weight; ``scale`` times the
            gradient is added to it.
        columns: Unused.
        ones: Unused.
        scale: The factor of the gradient.
        sizes: See `DeformConv`.

    Raises:
        ValueError: If the shapes contradict the sizes.
    """
    # The output is linear in the weight, so any weight has its gradient.
    inputs = [input, offset, gradWeight]
    grads = compute_gradients(DeformConv(PLAIN, sizes), inputs, gradOutput)
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
    """Compute a modulated deformable convolution.

    Args:
        input: The features.
        weight: The kernel.
        bias: ``(O,)``; of any shape and unused if not ``with_bias``.
        ones: Unused.
        offset: The shifts of the taps. If its height and width are not the
            output's, the first entries of each image are read as if they
            were, as the compiled op does; mmdet's DyHead relies on it.
        mask: The factors of the taps, read likewise.
        output: Buffer, overwritten.
        columns: Unused.
        sizes: See `DeformConv`, and ``with_bias``.

    Raises:
        ValueError: If the shapes contradict the sizes, or an offset or mask
            is too small.
    """
    biases = [bias] if sizes['with_bias'] else []
    inputs = [input, offset, weight, mask, *biases]
    output.copy_(compute(DeformConv(MODULATED, sizes), inputs))


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
    """Compute the gradients of :func:`modulated_deform_conv_forward`.

    Args:
        input: As in the forward op.
        weight: As in the forward op.
        bias: As in the forward op.
        ones: Unused.
        offset: As in the forward op.
        mask: As in the forward op.
        columns: Unused.
        grad_input: Buffer of the shape of ``input``, added to.
        grad_weight: Buffer of the shape of ``weight``, added to.
        grad_bias: Buffer of the shape of ``bias``, added to if there is one.
        grad_offset: Buffer of the shape of ``offset``, overwritten.
        grad_mask: Buffer of the shape of ``mask``, overwritten.
        grad_output: The gradient in the output.
        sizes: See `DeformConv`, and ``with_bias``.

    Raises:
        ValueError: If the shapes contradict the sizes, or an offset or mask
            is too small.
    """
    biases = [bias] if sizes['with_bias'] else []
    inputs = [input, offset, weight, mask, *biases]
    grads = compute_gradients(
        DeformConv(MODULATED, sizes), inputs, grad_output
    )
    grad_input.add_(grads[0])
    grad_offset.copy_(grads[1])
    grad_weight.add_(grads[2])
    grad_mask.copy_(grads[3])
    if biases:
        grad_bias.add_(grads[4])


def _first_entries(tensor: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the first entries of each image as ``(B, *shape)``."""
    entries = math.prod(shape)
    flat = tensor.flatten(1)
    if flat.shape[1] < entries:
        raise ValueError(
            f'expected at least {shape} per image, got '
            f'{tuple(tensor.shape[1:])}'
        )
    return flat[:, :entries].reshape(len(flat), *shape)
