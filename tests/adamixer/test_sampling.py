# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from helpers.factories import STRIDES, positions, pyramid
from torch import Tensor

from lors_det.adamixer.sampling import (
    AdaptiveSampling,
    Pyramid,
    level_weights,
    sample_3d,
)


def bilinear(feat: Tensor, x: float, y: float) -> Tensor:
    """(C, H, W) at x, y in cells, centres at half-integers, zero outside."""
    x, y = x - 0.5, y - 0.5
    left, top = math.floor(x), math.floor(y)
    value = torch.zeros(len(feat), dtype=feat.dtype)
    for column in (left, left + 1):
        for row in (top, top + 1):
            if 0 <= column < feat.shape[2] and 0 <= row < feat.shape[1]:
                weight = (1 - abs(x - column)) * (1 - abs(y - row))
                value = value + weight * feat[:, row, column]
    return value


def naive(feats: list[Tensor], points: Tensor) -> Tensor:
    """The definition, point by point."""
    batch, num_queries, num_groups, num_points, _ = points.shape
    width = feats[0].shape[1] // num_groups
    out = points.new_zeros(batch, num_queries, num_groups, num_points, width)
    for index in torch.cartesian_prod(
        *(torch.arange(s) for s in points.shape[:-1])
    ).tolist():
        b, _, g, _ = index
        x, y, z = points[tuple(index)].tolist()
        scores = [math.exp(-((z - math.log2(s)) ** 2) / 2) for s in STRIDES]
        for feat, stride, score in zip(feats, STRIDES, scores, strict=True):
            channels = feat[b, g * width : (g + 1) * width]
            value = bilinear(channels, x / stride, y / stride)
            out[tuple(index)] += score / sum(scores) * value
    return out


def test_sample_3d_is_the_definition() -> None:
    feats = [feat.double() for feat in pyramid(2)]
    points = torch.rand(2, 3, 2, 5, 3, dtype=torch.float64)
    points = points * torch.tensor([140.0, 100.0, 6.0]) - 20  # some outside
    points[..., 2] += 20
    torch.testing.assert_close(
        sample_3d(Pyramid.build(feats, STRIDES), points), naive(feats, points)
    )


def test_a_point_outside_is_zero() -> None:
    points = torch.tensor([500.0, -300.0, 3.0]).expand(1, 1, 2, 1, 3)
    assert not sample_3d(Pyramid.build(pyramid(1), STRIDES), points).any()


def test_level_weights_peak_at_their_stride() -> None:
    z = torch.tensor([2.0, 3.0, 4.0, 5.0])
    weights = level_weights(z, torch.tensor(STRIDES))
    assert weights.argmax(-1).tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))


def test_gradients() -> None:
    feats = [
        torch.randn(1, 4, 4, 6, dtype=torch.float64, requires_grad=True),
        torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True),
    ]
    points = torch.rand(1, 2, 2, 3, 3, dtype=torch.float64)
    points = (points * torch.tensor([24.0, 16.0, 5.0])).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, *f: sample_3d(Pyramid.build(f, (4, 8)), p), (points, *feats)
    )


def test_initial_points_cover_the_box() -> None:
    module = AdaptiveSampling(1, 32, 2, 16)
    xyzr = torch.tensor([[[50.0, 40.0, 4.0, 2.0]]])  # w = 8, h = 32
    points = module.points(torch.randn(1, 1, 32), xyzr, 0)[0, 0]
    assert points.shape == (2, 16, 3)
    x, y, z = points[0].unbind(-1)
    assert sorted(set(x.tolist())) == [47.0, 49.0, 51.0, 53.0]
    assert sorted(set(y.tolist())) == [28.0, 36.0, 44.0, 52.0]
    assert (z == 3).all()


def test_points_that_are_no_square_start_at_random() -> None:
    module = AdaptiveSampling(2, 32, 2, 300)
    for bias in module.offsets.bias:
        offset = bias.view(2, 300, 3)
        assert (offset[..., 2] == -1).all()
        assert 0.27 < offset[..., :2].std() < 0.31  # uniform of width 1
        assert offset[..., :2].abs().max() <= 0.5


def test_errors() -> None:
    points = positions(1, 2)[:, :, None, None, :3]
    with pytest.raises(
        ValueError, match=r'strides=\[4, 8\]: the neck gives 4'
    ):
        Pyramid.build(pyramid(1), (4, 8))
    with pytest.raises(
        ValueError, match=r'32 feature channels .*num_groups=3'
    ):
        sample_3d(
            Pyramid.build(pyramid(1), STRIDES),
            points.expand(-1, -1, 3, -1, -1),
        )
