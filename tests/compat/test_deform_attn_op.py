# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention against its definition."""

from collections.abc import Callable

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttention,
    MultiScaleDeformableAttnFunction,
)
from torch import Tensor

from lors_det.compat.mmcv_ext import StandInExt

SHAPES = [(3, 4), (2, 2), (1, 3)]


@pytest.fixture
def inputs(rng: torch.Generator) -> list[Tensor]:
    """The arguments of the op but the last, in float64.

    2 images, 5 queries, 2 heads of 3 channels, 3 levels, 2 points; some of
    the locations are outside.
    """
    shapes = torch.tensor(SHAPES)
    areas = shapes.prod(dim=1)
    starts = areas.cumsum(0) - areas
    value = torch.randn(2, int(areas.sum()), 2, 3, generator=rng)
    locations = torch.rand(2, 5, 2, 3, 2, 2, generator=rng) * 1.8 - 0.4
    weights = torch.rand(2, 5, 2, 3, 2, generator=rng)
    return [
        value.double(),
        shapes,
        starts,
        locations.double(),
        weights.double(),
    ]


def definition(
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    bilinear: Callable[[Tensor, float, float], Tensor],
) -> Tensor:
    """Return the weighted sum of the samples: ``(B, Q, M * D)``."""
    batch, queries, heads, _, points = weights.shape
    output = value.new_zeros(batch, queries, heads, value.shape[3])
    for b in range(batch):
        for m in range(heads):
            start = 0
            for level, (height, width) in enumerate(SHAPES):
                cells = value[b, start : start + height * width, m]
                image = cells.T.reshape(-1, height, width)
                start += height * width
                for q in range(queries):
                    for p in range(points):
                        x, y = locations[b, q, m, level, p].tolist()
                        sample = bilinear(
                            image, y * height - 0.5, x * width - 0.5
                        )
                        output[b, q, m] += weights[b, q, m, level, p] * sample
    return output.flatten(2)


def test_values(
    inputs: list[Tensor],
    bilinear: Callable[[Tensor, float, float], Tensor],
) -> None:
    """Values in float64 to 1e-12, in float32 to 1e-5, half as rounded."""
    value, shapes, starts, locations, weights = inputs
    expected = definition(value, locations, weights, bilinear)
    output = MultiScaleDeformableAttnFunction.apply(*inputs, 64)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    # The wrapper takes the other tensors' dtype from that of the values.
    single = MultiScaleDeformableAttnFunction.apply(
        value.float(), shapes, starts, locations, weights, 64
    )
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-5)
    half = [
        x.half() if x.is_floating_point() else x
        for x in (value, shapes, starts, locations, weights)
    ]
    rounded = [x.float() if x.is_floating_point() else x for x in half]
    exact = MultiScaleDeformableAttnFunction.apply(*rounded, 64)
    assert torch.equal(
        MultiScaleDeformableAttnFunction.apply(*half, 64), exact.half()
    )


def test_gradients(inputs: list[Tensor]) -> None:
    """The gradients in all float tensors, against finite differences."""
    value, shapes, starts, locations, weights = inputs

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        output: Tensor = MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, locations, weights, 64
        )
        return output

    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(attend, leaves)


def test_buffers(
    ext: StandInExt, inputs: list[Tensor], rng: torch.Generator
) -> None:
    """The value's gradient is added to its buffer, the others replace."""
    value, _, _, locations, weights = inputs
    grad = torch.randn(2, 5, 6, generator=rng, dtype=torch.float64)
    grads = []
    for start in (0.0, 5.0):
        buffers = [
            torch.full_like(x, start) for x in (value, locations, weights)
        ]
        ext.ms_deform_attn_backward(*inputs, grad, *buffers, im2col_step=64)
        grads.append(buffers)
    torch.testing.assert_close(grads[1][0], grads[0][0] + 5)
    assert torch.equal(grads[1][1], grads[0][1])
    assert torch.equal(grads[1][2], grads[0][2])


def test_layer_agrees_with_the_op(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer's own CPU path and the op give the same; to 1e-12."""
    shapes = torch.tensor(SHAPES)
    areas = shapes.prod(dim=1)
    starts = areas.cumsum(0) - areas
    layer = MultiScaleDeformableAttention(8, 2, 3, 2, dropout=0.0).double()
    query = torch.randn(5, 2, 8, generator=rng, dtype=torch.float64)
    value = torch.randn(
        int(areas.sum()), 2, 8, generator=rng, dtype=torch.float64
    )
    points = torch.rand(2, 5, 3, 2, generator=rng, dtype=torch.float64)

    def call() -> Tensor:
        output: Tensor = layer(
            query,
            value=value,
            reference_points=points,
            spatial_shapes=shapes,
            level_start_index=starts,
        )
        return output

    own = call()
    monkeypatch.setattr(
        'mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch',
        lambda value, shapes, locations, weights: (
            MultiScaleDeformableAttnFunction.apply(
                value, shapes, starts, locations, weights, 64
            )
        ),
    )
    torch.testing.assert_close(call(), own, rtol=0, atol=1e-12)
