# SPDX-License-Identifier: Apache-2.0
"""The decoder as its equations are written; docs/method.md quotes it.

Everything that an equation names is built: the whole matrices of every query,
each low-rank term at full size, the attention's scores. Nothing is fused or
reordered to save time. Tests and benchmarks compare the package with these
functions in float64; of its modules they use the parameters and torch's own
linear layers and norms.

Shapes: B images, N queries, C channels, G channel groups, P_in sampled points
of a group, P_out points after the spatial mixing, H attention heads, K
low-rank terms of rank r. A position xyzr is the centre (x, y) of a box in
pixels, z = log2 sqrt(w h) and r = log2(h / w).

Sources: AdaMixer (arXiv:2203.16507), LORS (arXiv:2403.04303).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.attention import QueryAttention
from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.geometry import at_least_float32
from lors_det.adamixer.heads import Branch, FeedForward
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.adamixer.sampling import AdaptiveSampling
from lors_det.lors import AdaptiveStack, StackedLinear

Mix = Callable[[AdaptiveMixing, Tensor, Tensor, int], Tensor]


def static_weight(stack: StackedLinear, stage: int) -> Tensor:
    """Build the weight of one stage, LORS-T: ``W = W_shared + B A``.

    Args:
        stack: The stacked weight.
        stage: Index of the stage, from 0.

    Returns:
        (out_features, in_features).
    """
    if stack.dense:
        return stack.dense[stage]
    terms: list[Tensor] = []
    if stack.shared is not None:
        terms.append(stack.shared)
    if str(stage) in stack.private_A:
        A = stack.private_A[str(stage)]  # (K r, in_features)
        B = stack.private_B[str(stage)]  # (out_features, K r)
        terms.append(B @ A)
    return torch.stack(terms).sum(0)


def adaptive_weight(stack: AdaptiveStack, query: Tensor, stage: int) -> Tensor:
    """Generate matrices, LORS-A: ``W(q) = W_shared(q) + sum_k B E(q) A``.

    Args:
        stack: The stacked weight.
        query: (B, N, C).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, G, rows, cols).
    """
    matrix = (stack.num_groups, stack.rows, stack.cols)
    if stack.dense:
        return stack.dense[stage](query).unflatten(-1, matrix)
    terms = []  # each (B, N, G, 1 or K, rows, cols)
    if stack.shared is not None:
        W = stack.shared(query).unflatten(-1, matrix)
        terms.append(W.unsqueeze(3))
    if str(stage) in stack.private_A:
        A = stack.private_A[str(stage)]  # (G, K, r, cols)
        B = stack.private_B[str(stage)]  # (G, K, rows, r)
        E = stack.private_E[str(stage)](query)
        E = E.unflatten(-1, (*A.shape[:3], A.shape[2]))  # (B, N, G, K, r, r)
        terms.append(B @ E @ A)
    return torch.cat(terms, dim=3).sum(3)


def linear(stack: StackedLinear, x: Tensor, stage: int) -> Tensor:
    """Apply the linear layer of one stage: ``W x + b``.

    Args:
        stack: The stacked weight.
        x: (..., in_features).
        stage: Index of the stage, from 0.

    Returns:
        (..., out_features).
    """
    bias = stack.bias[stage] if stack.bias else None
    return F.linear(x, static_weight(stack, stage), bias)


def box_sizes(xyzr: Tensor) -> Tensor:
    """Return (..., 2) widths and heights in pixels of (..., 4) positions."""
    z, r = xyzr[..., 2], xyzr[..., 3]
    return torch.stack([2 ** (z - r / 2), 2 ** (z + r / 2)], dim=-1)


def corners(xyzr: Tensor) -> Tensor:
    """Return (..., 4) boxes x1, y1, x2, y2 in pixels of positions."""
    centre, half = xyzr[..., :2], box_sizes(xyzr) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def refine(xyzr: Tensor, delta: Tensor) -> Tensor:
    """Move (..., 4) positions by the (..., 4) that the head predicts."""
    centre = xyzr[..., :2] + delta[..., :2] * 2 ** xyzr[..., 2:3]
    return torch.cat([centre, xyzr[..., 2:] + delta[..., 2:]], dim=-1)


def embed(xyzr: Tensor, dims: int) -> Tensor:
    """Return (..., dims) sines and cosines of (..., 4) positions."""
    block = dims // 4
    pair = torch.arange(0, block, 2, dtype=xyzr.dtype, device=xyzr.device)
    frequency = 10000 ** (-pair / block)
    unit = xyzr / xyzr.new_tensor([1000, 1000, 1, 1])
    angle = unit[..., None] * frequency  # (..., 4, block / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def intersection_over_foreground(boxes: Tensor) -> Tensor:
    """Return the part of box i that lies in box j, (B, N, N) of (B, N, 4)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)  # (B, N, N)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1).clamp(min=1e-6)
    return intersection / area[..., None]


def attend(
    attention: QueryAttention, content: Tensor, xyzr: Tensor, stage: int
) -> Tensor:
    """Let the queries attend to each other, as `QueryAttention` does.

    Args:
        attention: Module with the parameters.
        content: (B, N, C).
        xyzr: (B, N, 4).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, C).
    """
    c = content + embed(xyzr, content.shape[-1])
    iof = intersection_over_foreground(corners(xyzr))
    tau = attention.iof_tau[stage][:, None, None]
    bias = tau * (iof[:, None] + 1e-7).log()  # (B, H, N, N)
    q, k, v = (
        x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for x in linear(attention.in_proj, c, stage).chunk(3, dim=-1)
    )  # each (B, H, N, C/H)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    attended = scores.softmax(-1).to(v.dtype) @ v
    attended = attended.transpose(1, 2).flatten(2)  # (B, N, C)
    attended = linear(attention.out_proj, attended, stage)
    return attention.norm[stage](c + attended)


def sampling_points(
    sampling: AdaptiveSampling, content: Tensor, xyzr: Tensor, stage: int
) -> tuple[Tensor, Tensor]:
    """Place the points that a query samples.

    Args:
        sampling: Module with the parameters.
        content: (B, N, C).
        xyzr: (B, N, 4).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, G, P_in, 2) x and y in pixels; (B, N, G, P_in) z, the log2 of a
        scale in pixels.
    """
    offset = at_least_float32(linear(sampling.offsets, content, stage))
    offset = offset.unflatten(-1, (sampling.num_groups, -1, 3))
    xyzr, size = xyzr[:, :, None, None], box_sizes(xyzr)[:, :, None, None]
    xy = xyzr[..., :2] + offset[..., :2] * size
    z = xyzr[..., 2] + offset[..., 2]
    return xy, z


def sample(
    feats: Sequence[Tensor], strides: Sequence[int], xy: Tensor, z: Tensor
) -> Tensor:
    """Read a pyramid at points of continuous position and scale.

    Args:
        feats: One (B, C, H_l, W_l) per level.
        strides: Stride of every level in pixels.
        xy: (B, N, G, P_in, 2) in pixels.
        z: (B, N, G, P_in) log2 of a scale in pixels.

    Returns:
        (B, N, G, P_in, C/G); group g reads the g-th block of channels.
    """
    batch, _, groups = z.shape[:3]
    distance = [(z - math.log2(stride)) ** 2 for stride in strides]
    weights = (-torch.stack(distance) / 2).softmax(0)
    sampled = []
    for feat, stride, weight in zip(feats, strides, weights, strict=True):
        feat = at_least_float32(feat)
        feat = feat.reshape(batch * groups, -1, *feat.shape[2:])
        width, height = feat.shape[3], feat.shape[2]
        extent = xy.new_tensor([width * stride, height * stride])
        grid = 2 * xy / extent - 1  # -1 to 1 over the map, edge to edge
        grid = grid.transpose(1, 2).flatten(0, 1)  # (B G, N, P_in, 2)
        at_level = F.grid_sample(feat, grid, align_corners=False)
        at_level = at_level.unflatten(0, (batch, groups))
        at_level = at_level.permute(0, 3, 1, 4, 2)  # (B, N, G, P_in, C/G)
        sampled.append(weight[..., None] * at_level)
    return torch.stack(sampled).sum(0)


def mix(
    mixing: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
) -> Tensor:
    """Mix channels and points by generated matrices, as `AdaptiveMixing`.

    Args:
        mixing: Module with the parameters.
        sampled: (B, N, G, P_in, C/G).
        content: (B, N, C).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, C).
    """
    M = adaptive_weight(mixing.channel, content, stage)  # (.., C/G, C/G)
    S = adaptive_weight(mixing.spatial, content, stage)  # (.., P_out, P_in)
    X = sampled @ M
    X = F.relu(F.layer_norm(X, X.shape[-2:]))
    X = S @ X
    X = F.relu(F.layer_norm(X, X.shape[-2:]))  # (B, N, G, P_out, C/G)
    mixed = linear(mixing.out_proj, X.flatten(2), stage)
    return mixing.norm[stage](content + mixed)


def feed_forward(ffn: FeedForward, content: Tensor, stage: int) -> Tensor:
    """Transform (B, N, C) contents one by one, as `FeedForward` does."""
    hidden = F.relu(linear(ffn.fc1, content, stage))
    return ffn.norm[stage](content + linear(ffn.fc2, hidden, stage))


def predict(branch: Branch, content: Tensor, stage: int) -> Tensor:
    """Predict logits or deltas from (B, N, C) contents, as `Branch` does."""
    x = content
    hidden: Any = zip(branch.fcs, branch.norms, strict=True)
    for fc, norm in hidden:
        x = F.relu(norm[stage](linear(fc, x, stage)))
    return linear(branch.out, x, stage)


def decode(
    decoder: AdaMixerDecoder,
    feats: Sequence[Tensor],
    content: Tensor,
    xyzr: Tensor,
    mix: Mix = mix,
) -> list[StageOutput]:
    """Run all stages, as `AdaMixerDecoder.forward` does.

    Args:
        decoder: Module with the parameters.
        feats: One (B, C, H_l, W_l) per pyramid level.
        content: (B, N, C) initial query content.
        xyzr: (B, N, 4) initial query positions.
        mix: How to mix; `mix` with something around it.

    Returns:
        What every stage predicts, first to last.
    """
    outputs = []
    for stage in range(decoder.num_stages):
        xyzr = xyzr.detach()  # content carries gradients, positions do not
        content = attend(decoder.attention, content, xyzr, stage)
        xy, z = sampling_points(decoder.sampling, content, xyzr, stage)
        sampled = sample(feats, decoder.strides, xy, z)
        content = mix(decoder.mixing, sampled, content, stage)
        content = feed_forward(decoder.ffn, content, stage)
        logits = at_least_float32(predict(decoder.heads.cls, content, stage))
        delta = at_least_float32(predict(decoder.heads.reg, content, stage))
        xyzr = refine(xyzr, delta)
        outputs.append(StageOutput(logits, corners(xyzr), xyzr, content))
    return outputs
