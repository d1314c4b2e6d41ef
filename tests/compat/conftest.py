# SPDX-License-Identifier: Apache-2.0
"""The stand-in in place, and what the tests of its ops share."""

import sys

import pytest
import torch

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


@pytest.fixture(autouse=True)
def float64() -> None:
    """Seeded random numbers in float64, in which the ops are compared."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
