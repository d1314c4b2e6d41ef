# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention against its definition."""

import pytest
import torch
from helpers.ops import bilinear, check_half, check_values
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor

SHAPES = [(3, 4), (2, 2), (1, 3)]


@pytest.fixture
def inputs() -> list[Tensor]:
    """The arguments of the op but the last.

    2 images, 5 queries, 2 heads of 3 channels, 3 levels, 2 points; some of
    the locations are outside.
    """
    shapes = torch.tensor(SHAPES)
    areas = shapes.prod(dim=1)
    value = torch.randn(2, int(areas.sum()), 2, 3)
    locations = torch.rand(2, 5, 2, 3, 2, 2) * 1.8 - 0.4
    weights = torch.rand(2, 5, 2, 3, 2)
    return [value, shapes, areas.cumsum(0) - areas, locations, weights]


def definition(inputs: list[Tensor]) -> Tensor:
    """Return the weighted sum of the samples: ``(B, Q, M * D)``."""
    value, _, starts, locations, weights = inputs
    batch, queries, heads, _, points = weights.shape
    output = value.new_zeros(batch, queries, heads, value.shape[3])
    for b, q, m, level, p in torch.cartesian_prod(
        *map(torch.arange, (batch, queries, heads, len(SHAPES), points))
    ).tolist():
        height, width = SHAPES[level]
        start = int(starts[level])
        cells = value[b, start : start + height * width, m]
        image = cells.T.reshape(-1, height, width)
        x, y = locations[b, q, m, level, p].tolist()
        sample = bilinear(image, y * height - 0.5, x * width - 0.5)
        output[b, q, m] += weights[b, q, m, level, p] * sample
    return output.flatten(2)


def attend(*inputs: Tensor) -> Tensor:
    return MultiScaleDeformableAttnFunction.apply(*inputs, 64)


def test_values(inputs: list[Tensor]) -> None:
    check_values(attend, inputs, definition(inputs))
    check_half(attend, inputs)


def test_gradients(inputs: list[Tensor]) -> None:
    """The gradients in all float tensors, against finite differences."""
    value, shapes, starts, locations, weights = inputs
    assert torch.autograd.gradcheck(
        lambda value, *others: attend(value, shapes, starts, *others),
        [x.requires_grad_() for x in (value, locations, weights)],
    )
