# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from helpers.small_coco import write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set without defects."""
    return write(tmp_path)
