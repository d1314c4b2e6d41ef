# SPDX-License-Identifier: Apache-2.0
"""Equal to the official releases, number for number.

Every recorded file of ``tests/golden``, or of the directory that the
environment variable ``LORS_DET_GOLDEN`` names, is compared in float32 and
float64. Its kind is the beginning of its name, all sizes are in its sidecar.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.golden_checks import checks
from helpers.golden_files import BOUNDS, Check, Golden

from lors_det.lors import StackedLinear


def cases(*kinds: str) -> list[object]:
    """Parameters for pytest: the checks of files of these kinds."""
    return [
        pytest.param(path, check, id=f'{path.stem}-{check.__name__}')
        for path, check in checks()
        if path.stem.startswith(kinds or '')
    ]


@pytest.mark.parametrize(('path', 'check'), cases())
@pytest.mark.parametrize('dtype', BOUNDS, ids=str)
def test_golden(path: Path, check: Check, dtype: torch.dtype) -> None:
    golden = Golden.load(path, dtype)
    for comparison in check(golden):
        comparison.check(golden.bounds())


@pytest.mark.parametrize(('path', 'check'), cases('mixing_lors', 'decoder_'))
@pytest.mark.parametrize('unmerged', [False, True])
def test_every_path_is_equal(
    unmerged: bool, path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is chosen by cost changes the cost, not the numbers."""
    monkeypatch.setattr(
        StackedLinear,
        'use_unmerged',
        lambda self, num_rows, layer: (
            unmerged and str(layer) in self.private_A
        ),
    )
    test_golden(path, check, torch.float32)
