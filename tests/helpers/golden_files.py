# SPDX-License-Identifier: Apache-2.0
"""Numbers recorded from the official releases: where they are, how to read.

``tests/golden/README.md`` describes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OWN_DIR = Path(__file__).parents[1] / 'golden'
GOLDEN_DIR = Path(os.environ.get('LORS_DET_GOLDEN', OWN_DIR))

# Bounds by what is compared. Errors are relative to the largest entry of an
# array, those of boxes absolute in pixels, those of images in grey levels.
BOUNDS = {
    torch.float32: {
        'outputs': 1e-4, 'gradients': 1e-3, 'boxes': 1e-2, 'pixels': 1.01,
        'equal': 0.0,
    },
    torch.float64: {
        'outputs': 2e-5, 'gradients': 2e-5, 'boxes': 2e-3, 'pixels': 1.01,
        'equal': 0.0,
    },
}  # fmt: skip


@dataclass
class Comparison:
    """Named arrays of ours, and what was recorded for them.

    Args:
        kind: ``outputs``, ``gradients``, ``boxes`` (pixels), ``pixels``
            (grey levels) or ``equal`` (integers).
        found: Ours.
        expected: Recorded; the names must be the same ones.
    """

    kind: str
    found: dict[str, Tensor]
    expected: dict[str, Tensor]

    def errors(self) -> dict[str, float]:
        """The error of every array, as the kind has it."""
        if sorted(self.found) != sorted(self.expected):
            only = set(self.found) ^ set(self.expected)
            raise AssertionError(f'{self.kind}: not on both sides: {only}')
        is_relative = self.kind in ('outputs', 'gradients')
        measure = relative_error if is_relative else absolute_error
        return {
            k: measure(self.found[k], self.expected[k]) for k in self.found
        }

    def check(self, bounds: dict[str, float]) -> None:
        """Raises AssertionError if an array is beyond its bound."""
        bound = bounds[self.kind]
        too_far = {k: e for k, e in self.errors().items() if not e <= bound}
        if too_far:
            raise AssertionError(f'{self.kind} beyond {bound}: {too_far}')


@dataclass
class Golden:
    """One recorded file.

    Args:
        config: The sidecar: every hyper-parameter.
        arrays: Everything recorded, by name.
        dtype: Floating point type that the arrays are given in.
        device: Where the arrays are.
    """

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    dtype: torch.dtype
    device: str = 'cpu'

    @classmethod
    def load(
        cls, path: Path, dtype: torch.dtype, device: str = 'cpu'
    ) -> Golden:
        config = json.loads(path.with_suffix('.json').read_text())
        with np.load(path) as file:
            arrays = {k: file[k] for k in file.files}
        return cls(config, arrays, dtype, device)

    def __getitem__(self, name: str) -> Tensor:
        x = torch.from_numpy(np.asarray(self.arrays[name]))
        dtype = self.dtype if x.is_floating_point() else x.dtype
        return x.to(self.device, dtype)

    def bounds(self) -> dict[str, float]:
        """Bounds by what is compared.

        The recorded numbers are float32 themselves: in float64 the error is
        their rounding. Its size is in the sidecar, from a recomputation by
        the official code; where that is beyond our bound, it is the bound,
        and half of it more (rounding depends on the order of sums).
        """
        bounds = dict(BOUNDS[self.dtype])
        if self.dtype == torch.float64:
            rounding = 1.5 * max(own_errors(self.config), default=0.0)
            for kind in ('outputs', 'gradients'):
                bounds[kind] = max(bounds[kind], rounding)
        return bounds

    def section(self, prefix: str) -> dict[str, Tensor]:
        """All arrays below a prefix, by the rest of their name."""
        return {
            name.removeprefix(prefix): self[name]
            for name in self.arrays
            if name.startswith(prefix)
        }

    def compare(self, kind: str, found: dict[str, Tensor]) -> Comparison:
        """Compare with what was recorded below ``out/``."""
        expected = {name: self[f'out/{name}'] for name in found}
        return Comparison(kind, found, expected)

    def levels(self) -> list[Tensor]:
        """The feature pyramid, each level ready to get a gradient."""
        feats = []
        while f'in/feat{len(feats)}' in self.arrays:
            feats.append(self[f'in/feat{len(feats)}'].requires_grad_())
        return feats


def own_errors(entry: Any) -> Iterator[float]:
    """Relative errors that a sidecar states of the recorded numbers."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if key in ('rel_to_max', 'worst'):
                yield float(value)
            else:
                yield from own_errors(value)


Check = Callable[[Golden], Iterator[Comparison]]


def recorded(pattern: str) -> list[Path]:
    """Files of the directory under test; ours where that has none."""
    return sorted(GOLDEN_DIR.glob(pattern)) or sorted(OWN_DIR.glob(pattern))


def golden_files() -> list[Path]:
    """All recorded files.

    Raises:
        FileNotFoundError: If the directory holds none.
    """
    files = sorted(GOLDEN_DIR.glob('*.npz'))
    if not files:
        raise FileNotFoundError(f'{GOLDEN_DIR} holds no recorded file')
    return files


def absolute_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference; 0 for empty arrays."""
    if found.shape != expected.shape:
        raise AssertionError(f'{found.shape} is not {expected.shape}')
    if not expected.numel():
        return 0.0
    found = found.detach().double().to(expected.device)
    difference = found - expected.double()
    return float(difference.abs().max())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry expected.

    An array of entries below 1e-6 is noise: taken as if it had one of 1e-6.
    """
    difference = absolute_error(found, expected)
    if not difference:
        return 0.0
    return difference / max(float(expected.double().abs().max()), 1e-6)
