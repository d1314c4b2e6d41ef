# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention, by mmcv's own function in torch.

It sums values sampled at given locations of several feature levels. A sample
is bilinear, with zeros outside its level. The arguments of the ops:

- ``value`` ``(B, S, M, D)``: the cells of all levels, row by row, ``M`` heads
  of ``D`` channels;
- ``value_spatial_shapes`` ``(L, 2)`` int64: height and width of each level, in
  cells;
- ``sampling_locations`` ``(B, Q, M, L, P, 2)``: ``(x, y)`` in widths and
  heights of the level, ``(0, 0)`` its top left corner;
- ``attention_weights`` ``(B, Q, M, L, P)``;
- ``value_level_start_index`` and ``im2col_step``: unused, because a level
  starts where the one before it ends, and the batch is not split.
"""

from collections.abc import Callable

from torch import Tensor

from lors_det.compat.ops.compute import compute, compute_gradients


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the sums, ``(B, Q, M * D)``."""
    inputs = [value, sampling_locations, attention_weights]
    return compute(_attention(value_spatial_shapes), inputs).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to ``grad_value`` and overwrite the two other gradients."""
    inputs = [value, sampling_locations, attention_weights]
    attention = _attention(value_spatial_shapes)
    grads = compute_gradients(attention, inputs, grad_output)
    grad_value.add_(grads[0])
    grad_sampling_loc.copy_(grads[1])
    grad_attn_weight.copy_(grads[2])


def _attention(shapes: Tensor) -> Callable[..., Tensor]:
    # Not at the top: mmcv.ops imports the stand-in.
    from mmcv.ops.multi_scale_deform_attn import (
        multi_scale_deformable_attn_pytorch,
    )

    sizes = shapes.tolist()
    return lambda value, locations, weights: (
        multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
    )
