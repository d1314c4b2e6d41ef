# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from lors_det.adamixer.sampling import (
    AdaptiveSampling,
)


def test_points_that_are_no_square_start_at_random() -> None:
    module = AdaptiveSampling(2, 32, 2, 300)
    for bias in module.offsets.bias:
        offset = bias.view(2, 300, 3)
        assert (offset[..., 2] == -1).all()
        assert 0.27 < offset[..., :2].std() < 0.31  # uniform of width 1
        assert offset[..., :2].abs().max() <= 0.5
