# SPDX-License-Identifier: Apache-2.0
"""RoIAlign against its definition."""

import math

import pytest
import torch
from helpers.ops import bilinear, check_half, check_values
from mmcv.ops import roi_align
from torch import Tensor

from lors_det.compat import MissingOpError

# Inside, over the border, below one cell (at the scale of 0.5), and empty.
ROIS = [
    [0, 1.3, 2.1, 12.7, 9.2],
    [1, -3.0, 4.0, 9.5, 22.5],
    [1, 5.1, 5.2, 5.9, 6.1],
    [0, 4.0, 4.0, 4.0, 9.0],
]


def definition(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the mean of the samples of every bin: ``(K, C, *size)``.

    Samples up to one cell outside are moved to the border, others are 0.
    """
    height, width = features.shape[2:]
    pooled = features.new_zeros(len(rois), features.shape[1], *size)
    for k, roi in enumerate(rois.tolist()):
        image = features[int(roi[0])]
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in roi[1:])
        extents = [y2 - y1, x2 - x1]
        if not aligned:
            extents = [max(extent, 1) for extent in extents]
        bins = [extents[axis] / size[axis] for axis in range(2)]
        counts = [ratio or max(math.ceil(extent), 0) for extent in bins]
        for row, column, i, j in torch.cartesian_prod(
            *map(torch.arange, (*size, *counts))
        ).tolist():
            y = y1 + (row + (i + 0.5) / counts[0]) * bins[0]
            x = x1 + (column + (j + 0.5) / counts[1]) * bins[1]
            if -1 <= y <= height and -1 <= x <= width:
                y = min(max(y, 0.0), height - 1.0)
                x = min(max(x, 0.0), width - 1.0)
                share = bilinear(image, y, x) / (counts[0] * counts[1])
                pooled[k, :, row, column] += share
    return pooled


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_values_and_gradient(ratio: int, aligned: bool) -> None:
    features, rois = torch.randn(2, 3, 9, 7), torch.tensor(ROIS)
    expected = definition(features, rois, (3, 2), 0.5, ratio, aligned)
    assert expected.abs().amax(dim=(1, 2, 3))[:3].gt(0.1).all()

    def pool(features: Tensor, rois: Tensor = rois) -> Tensor:
        return roi_align(features, rois, (3, 2), 0.5, ratio, 'avg', aligned)

    check_values(pool, [features, rois], expected)
    small = torch.randn(2, 1, 5, 4, requires_grad=True)
    assert torch.autograd.gradcheck(pool, small)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    features, rois = torch.randn(2, 3, 9, 7), torch.tensor(ROIS)
    check_half(
        lambda *x: roi_align(*x, (3, 2), 0.5, 2), [features, rois], dtype
    )


def test_no_rois() -> None:
    features = torch.randn(1, 2, 5, 4, requires_grad=True)
    none = roi_align(features, torch.zeros(0, 5), 2)
    assert none.shape == (0, 2, 2, 2)
    (zero,) = torch.autograd.grad(none.sum(), features)
    assert not zero.any()


def test_maximum_pooling_is_missing() -> None:
    features, rois = torch.randn(1, 2, 5, 4), torch.tensor(ROIS[:1])
    with pytest.raises(MissingOpError, match=r"roi_align_forward.*'max'"):
        roi_align(features, rois, 2, 1.0, 0, 'max')
