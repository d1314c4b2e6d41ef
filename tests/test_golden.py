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

from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.lors import AdaptiveStack, StackedLinear

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


def places(place: str) -> dict[tuple[type, str], object]:
    """Add the low-rank parts at one place, whatever it costs."""

    def cheapest(
        self: AdaptiveStack,
        num_queries: int,
        layer: int,
        num_vectors: int | None = None,
    ) -> str:
        impossible = place == 'result' and num_vectors is None
        return place if self.core and not impossible else 'matrices'

    def is_applied(self: StackedLinear, num_rows: int, layer: int) -> bool:
        return place == 'result' and str(layer) in self.private_a

    return {
        (AdaptiveStack, 'cheapest'): cheapest,
        (StackedLinear, 'is_applied'): is_applied,
    }


def recomputing(what: str) -> dict[tuple[type, str], object]:
    """Build every mixing with the switch, whatever its config says."""
    build = AdaptiveMixing.__init__

    def init(self: AdaptiveMixing, *args: object, **kwargs: object) -> None:
        build(self, *args[:7], recompute=what, **kwargs)

    return {(AdaptiveMixing, '__init__'): init}


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(change(value), id=value)
        for change, values in (
            (places, ('generator', 'matrices', 'result')),
            (recomputing, ('activations', 'kernels')),
        )
        for value in values
    ],
)
@pytest.mark.parametrize(
    ('path', 'check'),
    [
        pytest.param(path, check, id=f'{path.stem}-{check.__name__}')
        for path, check in checks()
        if path.stem.startswith(('mixing_lors', 'decoder_'))
    ],
)
def test_every_path_is_equal(
    changes: dict[tuple[type, str], object],
    path: Path,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A switch or a counted choice may change the cost, not the numbers."""
    for (owner, name), value in changes.items():
        monkeypatch.setattr(owner, name, value)
    golden = Golden.load(path, torch.float32)
    for comparison in check(golden):
        comparison.check(golden.bounds())


def test_there_is_something_to_compare() -> None:
    assert checks()
