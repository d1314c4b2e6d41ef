# SPDX-License-Identifier: Apache-2.0
"""Every test starts from the same random state."""

from __future__ import annotations

import pytest
import torch

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

from helpers.command_lines import prepare_for_runs  # isort: skip


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope='session')
def _prepare_for_runs() -> None:
    prepare_for_runs()
