# SPDX-License-Identifier: Apache-2.0
"""Compare ops of the stand-in for mmcv's extension with definitions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

is_real = Tensor.is_floating_point


def bilinear(image: Tensor, y: float, x: float) -> Tensor:
    """Bilinear interpolation of an image that is zero outside its cells.

    Takes an image ``(C, H, W)`` and a position in cells, the centre of the
    first at 0; returns ``(C,)``.
    """
    _, height, width = image.shape
    rows = (1 - (torch.arange(height) - y).abs()).clamp(min=0)
    columns = (1 - (torch.arange(width) - x).abs()).clamp(min=0)
    return image @ columns @ rows


def check_values(
    op: Callable[..., Tensor], inputs: list[Tensor], expected: Tensor
) -> None:
    """Compare an op in float64 to 1e-12 and in float32 to 1e-5."""
    found = op(*inputs).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    single = op(*(x.float() if is_real(x) else x for x in inputs))
    assert single.dtype == torch.float32
    single = single.detach().double()
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-5)


def check_half(
    op: Callable[..., Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Check that half precision is computed in float32 and rounded once."""
    half = [
        x.detach().to(dtype).requires_grad_() if is_real(x) else x
        for x in inputs
    ]
    output = op(*half)
    exact = op(*(x.float() if is_real(x) else x for x in half))
    assert torch.equal(output, exact.to(dtype))
    output.sum().backward()
    grads = [x.grad for x in half if x.grad is not None]
    assert grads
    assert all(grad.dtype == dtype for grad in grads)
