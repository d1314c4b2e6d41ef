# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same random state."""

from __future__ import annotations

import pytest
import torch

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
