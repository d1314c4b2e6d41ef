# SPDX-License-Identifier: Apache-2.0
"""The decoder as its formulas are written: the oracle of the benchmark.

Everything is built that a formula names: the whole kernels of every query,
each private term as a matrix of full size, the terms side by side in one
tensor that is then summed, one pass over the result for every pyramid level,
attention as softmax(Q K^T + bias) V. Nothing is shared between stages,
nothing is reordered.

The parameters are those of our modules, whose names hold the weights; the
computation is not theirs. Only the feed-forward network and the heads are
called as they are: plain linear layers, with nothing in them to fuse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.attention import IOF_EPS, QueryAttention
from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.geometry import at_least_float32
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.adamixer.sampling import AdaptiveSampling
from lors_det.lors import AdaptiveStack, StackedLinear

Mix = Callable[[AdaptiveMixing, Tensor, Tensor, int], Tensor]


def kernels(stack: AdaptiveStack, query: Tensor, layer: int) -> Tensor:
    """``W_shared(q) + sum_k L_k E_k(q) R_k``, every term materialised.

    Source: LORS (arXiv:2403.04303), adaptive low-rank residual structure.

    Args:
        stack: Whose parameters to use.
        query: (B, N, C).
        layer: Index of the layer, from 0.

    Returns:
        (B, N, G, rows, cols).
    """
    sizes = (stack.num_groups, stack.rows, stack.cols)
    if len(stack.dense):
        return stack.dense[layer](query).unflatten(-1, sizes)
    terms = []  # each (B, N, G, 1, rows, cols)
    if stack.shared is not None:
        full = stack.shared(query).unflatten(-1, sizes)
        terms.append(full.unsqueeze(3))
    name = str(layer)
    if name in stack.private_E:
        left, right = stack.private_B[name], stack.private_A[name]
        num_terms, r = right.shape[1:3]
        small = stack.private_E[name](query)
        small = small.unflatten(-1, (stack.num_groups, num_terms, r, r))
        terms.append(left @ small @ right)  # (B, N, G, K, rows, cols)
    return torch.cat(terms, dim=3).sum(3)


def linear(stack: StackedLinear, x: Tensor, layer: int) -> Tensor:
    """``(W_shared + B A) x + b``, the weight summed first.

    Args:
        stack: Whose parameters to use.
        x: (..., in_features).
        layer: Index of the layer, from 0.

    Returns:
        (..., out_features).
    """
    bias = stack.bias[layer] if len(stack.bias) else None
    if len(stack.dense):
        return F.linear(x, stack.dense[layer], bias)
    name = str(layer)
    terms: list[Tensor] = [] if stack.shared is None else [stack.shared]
    if name in stack.private_A:
        terms.append(stack.private_B[name] @ stack.private_A[name])
    return F.linear(x, torch.stack(terms).sum(0), bias)


def mix(
    mixing: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
) -> Tensor:
    """One stage's mixing, as `AdaptiveMixing.forward`.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive content decoding".

    Args:
        mixing: Whose parameters to use.
        sampled: (B, N, G, P_in, C/G).
        content: (B, N, C).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, C).
    """
    x = torch.matmul(sampled, kernels(mixing.channel, content, stage))
    x = F.relu(F.layer_norm(x, x.shape[-2:]))
    x = torch.matmul(kernels(mixing.spatial, content, stage), x)
    x = F.relu(F.layer_norm(x, x.shape[-2:]))
    added = linear(mixing.out_proj, x.flatten(2), stage)
    return mixing.norm[stage](content + added)


def box_sizes(xyzr: Tensor) -> Tensor:
    """(..., 4) positions -> (..., 2) width and height in pixels."""
    z, r = xyzr[..., 2], xyzr[..., 3]
    return torch.stack([2 ** (z - r / 2), 2 ** (z + r / 2)], dim=-1)


def corners(xyzr: Tensor) -> Tensor:
    """(..., 4) positions -> (..., 4) x1, y1, x2, y2 in pixels."""
    half = box_sizes(xyzr) / 2
    return torch.cat([xyzr[..., :2] - half, xyzr[..., :2] + half], dim=-1)


def sample(
    sampling: AdaptiveSampling,
    feats: Sequence[Tensor],
    strides: Sequence[int],
    content: Tensor,
    xyzr: Tensor,
    stage: int,
) -> Tensor:
    """Place a stage's points, and read every level with ``grid_sample``.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location sampling".

    Args:
        sampling: Whose parameters to use.
        feats: One (B, C, H_l, W_l) per level.
        strides: Stride of every level in pixels.
        content: (B, N, C).
        xyzr: (B, N, 4).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, G, P_in, C/G) in at least float32.
    """
    batch, groups = len(content), sampling.num_groups
    offset = at_least_float32(linear(sampling.offsets, content, stage))
    offset = offset.unflatten(-1, (groups, -1, 3))
    xy = offset[..., :2] * box_sizes(xyzr)[:, :, None, None]
    xy = (xyzr[:, :, None, None, :2] + xy).transpose(1, 2).flatten(0, 1)
    z = xyzr[:, :, None, None, 2] + offset[..., 2]  # (B, N, G, P)
    distance = [(z - math.log2(stride)) ** 2 for stride in strides]
    weights = (-torch.stack(distance, dim=-1) / 2).softmax(-1)
    levels = []
    for level, stride in enumerate(strides):
        feat = at_least_float32(feats[level])
        height, width = feat.shape[-2:]
        extent = xy.new_tensor([width * stride, height * stride])
        at_level = F.grid_sample(
            feat.reshape(batch * groups, -1, height, width),
            2 * xy / extent - 1,
            align_corners=False,
        )  # (B G, C/G, N, P)
        at_level = at_level.unflatten(0, (batch, groups))
        at_level = at_level.permute(0, 3, 1, 4, 2)  # (B, N, G, P, C/G)
        levels.append(at_level * weights[..., level, None])
    return torch.stack(levels).sum(0)


def attend(
    attention: QueryAttention, content: Tensor, xyzr: Tensor, stage: int
) -> Tensor:
    """One stage's self-attention, as `QueryAttention.forward`.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector".

    Args:
        attention: Whose parameters to use.
        content: (B, N, C).
        xyzr: (B, N, 4).
        stage: Index of the stage, from 0.

    Returns:
        (B, N, C).
    """
    block = content.shape[-1] // 4
    pair = torch.arange(0, block, 2, dtype=xyzr.dtype, device=xyzr.device)
    frequency = 10000 ** (-pair / block)
    embedding = []
    for coordinate, unit in enumerate((1000, 1000, 1, 1)):
        angle = xyzr[..., coordinate, None] / unit * frequency
        both = torch.stack([angle.sin(), angle.cos()], dim=-1)
        embedding.append(both.flatten(-2))
    content = content + torch.cat(embedding, dim=-1)

    boxes = corners(xyzr)
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)  # (B, N, N)
    area = box_sizes(xyzr).prod(-1).clamp(min=1e-6)
    overlap = (shared / area[..., None] + IOF_EPS).log()
    bias = attention.iof_tau[stage][:, None, None] * overlap[:, None]

    qkv = linear(attention.in_proj, content, stage)
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in qkv.chunk(3, dim=-1)
    )  # each (B, H, N, C/H)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    attended = scores.softmax(-1).to(v.dtype) @ v
    attended = attended.transpose(1, 2).flatten(2)
    added = linear(attention.out_proj, attended, stage)
    return attention.norm[stage](content + added)


def decode(
    decoder: AdaMixerDecoder,
    feats: Sequence[Tensor],
    content: Tensor,
    xyzr: Tensor,
    mix_stage: Mix = mix,
) -> list[StageOutput]:
    """All stages, as `AdaMixerDecoder.forward`.

    Args:
        decoder: Whose parameters to use.
        feats: One (B, C, H_l, W_l) per level.
        content: (B, N, C).
        xyzr: (B, N, 4).
        mix_stage: What to mix a stage with.

    Returns:
        What every stage predicts, first to last.
    """
    outputs = []
    for stage in range(decoder.num_stages):
        xyzr = xyzr.detach()
        content = attend(decoder.attention, content, xyzr, stage)
        sampled = sample(
            decoder.sampling, feats, decoder.strides, content, xyzr, stage
        )
        content = mix_stage(decoder.mixing, sampled, content, stage)
        content = decoder.ffn(content, stage)
        cls_logits, delta = decoder.heads(content, stage)
        delta = at_least_float32(delta)
        centre = xyzr[..., :2] + delta[..., :2] * 2 ** xyzr[..., 2:3]
        xyzr = torch.cat([centre, xyzr[..., 2:] + delta[..., 2:]], dim=-1)
        outputs.append(
            StageOutput(
                at_least_float32(cls_logits), corners(xyzr), xyzr, content
            )
        )
    return outputs
