# SPDX-License-Identifier: Apache-2.0
"""What is compared with each recorded file."""

from __future__ import annotations

from pathlib import Path

from helpers import golden_decoders, golden_detectors, golden_modules
from helpers.golden_files import Check, golden_files

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
