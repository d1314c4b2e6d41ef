# SPDX-License-Identifier: Apache-2.0
"""The stand-in in place, and what the tests of its ops share."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import lors_det.compat
from lors_det.compat.mmcv_ext import StandInExt

# Before the test modules import mmcv.ops.
lors_det.compat.ensure_mmcv_ext()

is_real = Tensor.is_floating_point


@pytest.fixture(autouse=True)
def ext(monkeypatch: pytest.MonkeyPatch) -> StandInExt:
    """A stand-in, in use by mmcv.ops even if mmcv has a real extension."""
    module = StandInExt('mmcv._ext')
    for name, wrapper in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(wrapper, 'ext_module'):
            monkeypatch.setattr(wrapper, 'ext_module', module)
    return module


@pytest.fixture(autouse=True)
def float64() -> None:
    """Seeded random numbers in float64, in which the ops are compared."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def bilinear() -> Callable[[Tensor, float, float], Tensor]:
    """Bilinear interpolation of an image that is zero outside its cells.

    The function takes an image ``(C, H, W)`` and the position ``(y, x)`` in
    cells, the centre of the first at 0, and returns ``(C,)``.
    """

    def sample(image: Tensor, y: float, x: float) -> Tensor:
        _, height, width = image.shape
        rows = (1 - (torch.arange(height) - y).abs()).clamp(min=0)
        columns = (1 - (torch.arange(width) - x).abs()).clamp(min=0)
        return image @ columns @ rows

    return sample


@pytest.fixture
def check_values() -> Callable[..., None]:
    """Compare an op in float64 to 1e-12 and in float32 to 1e-5.

    The function takes the op, its tensors in float64 and the expected output.
    """

    def check(
        op: Callable[..., Tensor], inputs: list[Tensor], expected: Tensor
    ) -> None:
        found = op(*inputs).detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        single = op(*(x.float() if is_real(x) else x for x in inputs))
        assert single.dtype == torch.float32
        single = single.detach().double()
        torch.testing.assert_close(single, expected, rtol=0, atol=1e-5)

    return check


@pytest.fixture
def check_half() -> Callable[..., None]:
    """Check that half precision is computed in float32 and rounded once.

    The function takes the op and its tensors in any floating-point dtype.
    """

    def check(
        op: Callable[..., Tensor],
        inputs: list[Tensor],
        dtype: torch.dtype = torch.float16,
    ) -> None:
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

    return check
