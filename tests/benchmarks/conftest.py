# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from helpers.factories import STRIDES, decoder_config

from benchmarks import cases


@pytest.fixture
def small_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of the tests instead of those of the configs."""

    def small(name: str) -> dict[str, Any]:
        if 'lors' in name:
            return decoder_config('lors', strides=STRIDES)
        return decoder_config(
            num_groups=4, in_points=2, strides=STRIDES, stacks={}
        )

    monkeypatch.setattr(cases, 'decoder_settings', small)
