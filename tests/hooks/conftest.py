# SPDX-License-Identifier: Apache-2.0
"""Runs resume as those of tools/train.py do."""

from __future__ import annotations

import pytest
from mmengine.runner import CheckpointLoader

from lors_det.safe_load import install


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original mmengine cannot resume with torch 2.6 or newer."""
    schemes = dict(CheckpointLoader._schemes)
    monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)
    install()
