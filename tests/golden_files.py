# SPDX-License-Identifier: Apache-2.0
"""Numbers recorded from the official releases: where they are, how to read.

``tests/golden/README.md`` describes them.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN_DIR = Path(
    os.environ.get('LORS_DET_GOLDEN', Path(__file__).parent / 'golden')
)

# (dtype, tolerance of outputs, tolerance of gradients), relative to the
# largest entry of the array. The recorded numbers are float32 themselves.
PRECISIONS = [
    (torch.float32, 1e-4, 1e-3),
    (torch.float64, 2e-5, 2e-5),
]


@dataclass
class Golden:
    """One recorded file.

    Args:
        config: The sidecar: every hyper-parameter.
        arrays: Everything recorded, by name.
        dtype: Floating point type that the arrays are given in.
    """

    config: dict[str, Any]
    arrays: dict[str, np.ndarray]
    dtype: torch.dtype

    @classmethod
    def load(cls, path: Path, dtype: torch.dtype) -> Golden:
        config = json.loads(path.with_suffix('.json').read_text())
        with np.load(path) as file:
            return cls(config, {k: file[k] for k in file.files}, dtype)

    def __getitem__(self, name: str) -> Tensor:
        x = torch.from_numpy(np.asarray(self.arrays[name]))
        return x.to(self.dtype) if x.is_floating_point() else x

    def section(self, prefix: str) -> dict[str, Tensor]:
        """All arrays below a prefix, by the rest of their name."""
        return {
            name.removeprefix(prefix): self[name]
            for name in self.arrays
            if name.startswith(prefix)
        }

    def levels(self) -> list[Tensor]:
        """The feature pyramid, each level ready to get a gradient."""
        feats = []
        while f'in/feat{len(feats)}' in self.arrays:
            feats.append(self[f'in/feat{len(feats)}'].requires_grad_())
        return feats


def golden_files(*prefixes: str) -> list[Path]:
    """Recorded files of some kinds.

    Raises:
        FileNotFoundError: If the directory holds none of any kind.
    """
    files = sorted(GOLDEN_DIR.glob('*.npz'))
    if not files:
        raise FileNotFoundError(f'{GOLDEN_DIR} holds no recorded file')
    return [
        file
        for file in files
        if any(
            file.stem == prefix.rstrip('*')
            or (prefix.endswith('*') and file.stem.startswith(prefix[:-1]))
            for prefix in prefixes
        )
    ]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = (found.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-12))


def assert_all_close(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    """Compare named arrays; the names must be the same ones."""
    assert sorted(found) == sorted(expected)
    errors = {k: relative_error(found[k], expected[k]) for k in expected}
    too_far = {k: e for k, e in errors.items() if not e <= tolerance}
    assert not too_far, f'beyond {tolerance}: {too_far}'
