# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention, through ``grid_sample``."""

from torch import Tensor
from torch.nn.functional import grid_sample

from lors_det.compat.ops.recompute import gradients, working_dtype


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum values sampled at given locations of several feature levels.

    A sample is bilinear, with zeros outside its level.

    Args:
        value: ``(B, S, M, D)``: the cells of all levels, row by row, ``M``
            heads of ``D`` channels.
        value_spatial_shapes: ``(L, 2)`` int64 ``(height, width)`` of each
            level, in cells.
        value_level_start_index: ``(L,)`` int64 first cell of each level.
        sampling_locations: ``(B, Q, M, L, P, 2)`` as ``(x, y)``, in widths
            and heights of the level, ``(0, 0)`` its top left corner.
        attention_weights: ``(B, Q, M, L, P)``.
        im2col_step: Unused; how the compiled op splits the batch.

    Returns:
        ``(B, Q, M * D)``.
    """
    dtype = working_dtype(value, sampling_locations, attention_weights)
    output = _attend(
        value.to(dtype),
        sampling_locations.to(dtype),
        attention_weights.to(dtype),
        value_spatial_shapes,
        value_level_start_index,
    )
    return output.to(value.dtype)


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
    """Compute the gradients of :func:`ms_deform_attn_forward`.

    Args:
        value: As in the forward op.
        value_spatial_shapes: As in the forward op.
        value_level_start_index: As in the forward op.
        sampling_locations: As in the forward op.
        attention_weights: As in the forward op.
        grad_output: ``(B, Q, M * D)``.
        grad_value: ``(B, S, M, D)`` buffer, added to.
        grad_sampling_loc: ``(B, Q, M, L, P, 2)`` buffer, overwritten.
        grad_attn_weight: ``(B, Q, M, L, P)`` buffer, overwritten.
        im2col_step: As in the forward op.
    """

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return _attend(
            value,
            locations,
            weights,
            value_spatial_shapes,
            value_level_start_index,
        )

    inputs = [value, sampling_locations, attention_weights]
    grads = gradients(attend, inputs, grad_output, working_dtype(*inputs))
    grad_value.add_(grads[0])
    grad_sampling_loc.copy_(grads[1])
    grad_attn_weight.copy_(grads[2])


def _attend(
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    shapes: Tensor,
    starts: Tensor,
) -> Tensor:
    """Return the attention's output ``(B, Q, M * D)``, in one dtype."""
    batch, _, heads, channels = value.shape
    queries, points = weights.shape[1], weights.shape[4]
    # Heads are images of the batch: one grid_sample call for each level.
    values = value.permute(0, 2, 3, 1).flatten(0, 1)
    # From [0, 1] to the [-1, 1] of grid_sample.
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    weights = weights.transpose(1, 2).flatten(0, 1)
    output = value.new_zeros(batch * heads, channels, queries)
    levels = zip(shapes.tolist(), starts.tolist(), strict=True)
    for level, ((height, width), start) in enumerate(levels):
        image = values[:, :, start : start + height * width]
        samples = grid_sample(
            image.reshape(batch * heads, channels, height, width),
            grids[:, :, level].reshape(batch * heads, queries, points, 2),
            mode='bilinear',
            padding_mode='zeros',
            align_corners=False,
        )
        output = output + (samples * weights[:, None, :, level]).sum(dim=3)
    by_head = output.view(batch, heads * channels, queries)
    return by_head.transpose(1, 2).contiguous()
