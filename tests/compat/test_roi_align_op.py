# SPDX-License-Identifier: Apache-2.0
"""RoIAlign against its definition."""

import math

import pytest
import torch
from mmcv.ops import RoIAlign, roi_align
from torch import Tensor

from lors_det.compat import MissingOpError
from lors_det.compat.mmcv_ext import StandInExt

# Inside, over the border, below one cell (at the scale of 0.5), and empty.
ROIS = [
    [0, 1.3, 2.1, 12.7, 9.2],
    [1, -3.0, 4.0, 9.5, 22.5],
    [1, 5.1, 5.2, 5.9, 6.1],
    [0, 4.0, 4.0, 4.0, 9.0],
]


def sample(image: Tensor, y: float, x: float) -> Tensor:
    """Interpolate ``(C, H, W)`` at a position in cells to ``(C,)``.

    Positions up to one cell outside are moved to the border, others are 0.
    """
    _, height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return image.new_zeros(image.shape[0])
    y = min(max(y, 0), height - 1)
    x = min(max(x, 0), width - 1)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, over = y - top, x - left
    upper = (1 - over) * image[:, top, left] + over * image[:, top, right]
    lower = (1 - over) * image[:, bottom, left] + over * image[
        :, bottom, right
    ]
    return (1 - down) * upper + down * lower


def definition(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
) -> Tensor:
    """Return the mean of the samples of every bin: ``(K, C, *size)``."""
    pooled = features.new_zeros(len(rois), features.shape[1], *size)
    for k, roi in enumerate(rois.tolist()):
        image = features[int(roi[0])]
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in roi[1:])
        extents = [y2 - y1, x2 - x1]
        if not aligned:
            extents = [max(extent, 1) for extent in extents]
        bins = [extents[axis] / size[axis] for axis in range(2)]
        counts = [ratio or math.ceil(extent) for extent in bins]
        for row in range(size[0]):
            for column in range(size[1]):
                for i in range(counts[0]):
                    for j in range(counts[1]):
                        y = y1 + (row + (i + 0.5) / counts[0]) * bins[0]
                        x = x1 + (column + (j + 0.5) / counts[1]) * bins[1]
                        pooled[k, :, row, column] += sample(image, y, x) / (
                            counts[0] * counts[1]
                        )
    return pooled


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_values(ratio: int, aligned: bool, rng: torch.Generator) -> None:
    """Every bin's mean; float64 to 1e-12, float32 to 1e-5."""
    features = torch.randn(2, 3, 9, 7, generator=rng, dtype=torch.float64)
    rois = features.new_tensor(ROIS)
    layer = RoIAlign((3, 2), 0.5, ratio, aligned=aligned)
    expected = definition(features, rois, (3, 2), 0.5, ratio, aligned)
    assert expected.abs().amax(dim=(1, 2, 3))[:3].gt(0.1).all()
    torch.testing.assert_close(
        layer(features, rois), expected, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        layer(features.float(), rois.float()).double(),
        expected,
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_gradient(ratio: int, aligned: bool, rng: torch.Generator) -> None:
    """The gradient in the features, against finite differences."""
    features = torch.randn(2, 1, 5, 4, generator=rng, dtype=torch.float64)
    rois = features.new_tensor(ROIS)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (3, 2), 0.5, ratio, 'avg', aligned),
        features.requires_grad_(),
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Half precision is computed in float32 and rounded once."""
    features = torch.randn(2, 3, 9, 7, generator=rng).to(dtype)
    rois = torch.tensor(ROIS, dtype=dtype)
    features.requires_grad_()
    pooled = roi_align(features, rois, (3, 2), 0.5, 2)
    pooled.sum().backward()
    exact = roi_align(features.float(), rois.float(), (3, 2), 0.5, 2)
    assert torch.equal(pooled, exact.to(dtype))
    assert features.grad is not None
    assert features.grad.dtype == dtype


def test_backward_adds_and_no_rois(
    ext: StandInExt, rng: torch.Generator
) -> None:
    """The gradient is added to its buffer; without RoIs it is 0."""
    features = torch.randn(
        1, 2, 5, 4, generator=rng, dtype=torch.float64, requires_grad=True
    )
    rois = features.new_tensor([[0, 1, 1, 3, 3]])
    pooled = roi_align(features, rois, 2)
    (expected,) = torch.autograd.grad(pooled.sum(), features)
    buffer = torch.ones_like(features)
    arguments = {
        'aligned_height': 2,
        'aligned_width': 2,
        'spatial_scale': 1.0,
        'sampling_ratio': 0,
        'pool_mode': 1,
        'aligned': True,
    }
    empty = features.new_zeros(0)
    ones = torch.ones_like(pooled)
    ext.roi_align_backward(ones, rois, empty, empty, buffer, **arguments)
    assert torch.equal(buffer, expected + 1)
    none = roi_align(features, rois[:0], 2)
    assert none.shape == (0, 2, 2, 2)
    (zero,) = torch.autograd.grad(none.sum(), features)
    assert not zero.any()


def test_maximum_pooling_is_missing(
    ext: StandInExt, rng: torch.Generator
) -> None:
    """Maximum pooling is told to be missing, forward and backward."""
    features = torch.randn(1, 2, 5, 4, generator=rng)
    rois = features.new_tensor([[0, 1, 1, 3, 3]])
    with pytest.raises(MissingOpError, match=r"roi_align_forward.*'max'"):
        roi_align(features, rois, 2, 1.0, 0, 'max')
    with pytest.raises(MissingOpError, match=r"roi_align_backward.*'max'"):
        ext.roi_align_backward(
            features, rois, rois, rois, features, 5, 4, 1.0, 0, 0, True
        )
