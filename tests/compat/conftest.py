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


@pytest.fixture(autouse=True)
def ext(monkeypatch: pytest.MonkeyPatch) -> StandInExt:
    """A stand-in, in use by mmcv.ops even if mmcv has a real extension."""
    module = StandInExt('mmcv._ext')
    for name, wrapper in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(wrapper, 'ext_module'):
            monkeypatch.setattr(wrapper, 'ext_module', module)
    return module


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def bilinear() -> Callable[[Tensor, float, float], Tensor]:
    """Bilinear interpolation of an image that is zero outside its cells.

    The function takes an image ``(C, H, W)`` and the position ``(y, x)`` in
    cells, the centre of the first at 0, and returns ``(C,)``.
    """

    def sample(image: Tensor, y: float, x: float) -> Tensor:
        _, height, width = image.shape
        value = image.new_zeros(image.shape[0])
        for row in range(height):
            for column in range(width):
                near = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                if near:
                    value = value + near * image[:, row, column]
        return value

    return sample
