# SPDX-License-Identifier: Apache-2.0
"""Equal to the official releases, number for number.

Every recorded file of ``tests/golden``, or of the directory that the
environment variable ``LORS_DET_GOLDEN`` names, is compared in float32 and
float64. Its kind is the beginning of its name, all sizes are in its sidecar.
"""

from __future__ import annotations

from pathlib import Path

import golden_decoders
import golden_detectors
import golden_modules
import pytest
import torch
from golden_files import BOUNDS, Check, Golden, dtype_name, golden_files

#: What is compared, by how the names of the files begin.
CHECKS: dict[str, list[Check]] = {
    'sampling': [golden_modules.sampling],
    'adaptive_sampling': [
        golden_modules.adaptive_sampling,
        golden_modules.initial_grid,
    ],
    'mixing_dense': [golden_modules.mixing_dense],
    'mixing_lors': [golden_modules.mixing_lors],
    'stage_attention': [golden_modules.stage_attention],
    'decoder_': [
        golden_decoders.decoder_outputs,
        golden_decoders.decoder_losses,
    ],
    'detector_': [
        golden_detectors.detector_inputs,
        golden_detectors.detector_outputs,
        golden_detectors.detector_losses,
        golden_detectors.detector_conversion,
    ],
}


def checks() -> list[tuple[Path, Check]]:
    """All files with what is compared of them."""
    return [
        (path, check)
        for path in golden_files()
        for kind, checks_of_kind in CHECKS.items()
        for check in checks_of_kind
        if path.stem.startswith(kind)
    ]


@pytest.mark.parametrize(
    ('path', 'check', 'dtype'),
    [
        pytest.param(
            path,
            check,
            dtype,
            id=f'{path.stem}-{check.__name__}-{dtype_name(dtype)}',
        )
        for path, check in checks()
        for dtype in BOUNDS
    ],
)
def test_golden(path: Path, check: Check, dtype: torch.dtype) -> None:
    golden = Golden.load(path, dtype)
    for comparison in check(golden):
        comparison.check(golden.bounds())


def test_there_is_something_to_compare() -> None:
    assert checks()
