# SPDX-License-Identifier: Apache-2.0
"""The sizes of a deformable convolution, and the convolution itself.

Throughout, ``input`` is ``(B, C, H, W)``, ``weight`` ``(O, C / group, kh,
kw)``, the output ``(B, O, H', W')``, and with ``G`` deformable groups
``offset`` is ``(B, 2 * G * kh * kw, H', W')``, for each group and tap the
shift ``(dy, dx)`` in cells, and ``mask`` ``(B, G * kh * kw, H', W')`` the
factor of each tap. A tap is a bilinear sample of the input, with zeros
outside it.
"""

from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """The sizes of a convolution, as ``(vertical, horizontal)``, in cells."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    deform_groups: int

    def check(self, input: Tensor, offset: Tensor, weight: Tensor) -> None:
        """Raise if the tensors do not have these sizes.

        torchvision takes them from the shapes, so that a contradiction would
        go unnoticed.

        Args:
            input: The features.
            offset: The shifts of the taps.
            weight: The kernel.

        Raises:
            ValueError: If they do not.
        """
        shifts = 2 * self.deform_groups * self.kernel[0] * self.kernel[1]
        expected = {
            'kernel size': (tuple(weight.shape[2:]), self.kernel),
            'input channels': (input.shape[1], weight.shape[1] * self.groups),
            'offset channels': (offset.shape[1], shifts),
        }
        for name, (got, wanted) in expected.items():
            if got != wanted:
                raise ValueError(f'{name}: expected {wanted}, got {got}')

    def convolve(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the convolution; all tensors in one dtype.

        Args:
            input: The features.
            offset: The shifts of the taps.
            weight: The kernel.
            mask: The factors of the taps, 1 without.
            bias: ``(O,)``, 0 without.
        """
        # Here and not above: torchvision is slow to import, and only some
        # ops need it.
        from torchvision.ops import deform_conv2d

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
