# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
# The language of Triton looks like Python but has types of its own.
"""Triton kernels of one stage's mixing; `lors_det.adamixer.fused` runs them.

Needs triton. One program does one (query, group). Sizes are powers of two,
from 16; all tensors are contiguous, program after program:

- sampled ``x`` (POINTS, WIDTH), channel ``m`` (WIDTH, WIDTH), spatial ``s``
  (OUT_POINTS, POINTS), out (OUT_POINTS, WIDTH), and gradients like them;
- DEPTH is how much of WIDTH, ROWS how much of OUT_POINTS is at hand at once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rstd(variance):
    return 1.0 / tl.sqrt(variance + 1e-5)


@triton.jit
def _normalise(y, SIZE: tl.constexpr):
    centred = y - tl.sum(y) / SIZE
    rstd = _rstd(tl.sum(centred * centred) / SIZE)
    return centred * rstd, rstd


@triton.jit
def _mix_channels(
    x_ptr,
    m_ptr,
    POINTS: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    point = tl.arange(0, POINTS)[:, None] * WIDTH
    column = tl.arange(0, WIDTH)[None, :]
    depth = tl.arange(0, DEPTH)
    y = tl.full((POINTS, WIDTH), 0.0, tl.float32)
    for k in range(0, WIDTH, DEPTH):
        x = tl.load(x_ptr + point + (depth[None, :] + k))
        m = tl.load(m_ptr + (depth[:, None] + k) * WIDTH + column)
        y = tl.dot(x, m, y, input_precision=PRECISION)
    return y


@triton.jit
def forward(
    x_ptr,
    m_ptr,
    s_ptr,
    out_ptr,
    POINTS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_POINTS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write ``out`` from ``x``, ``m`` and ``s``."""
    i = tl.program_id(0).to(tl.int64)
    x_ptr += i * (POINTS * WIDTH)
    m_ptr += i * (WIDTH * WIDTH)
    point = tl.arange(0, POINTS)[None, :]
    column = tl.arange(0, WIDTH)[None, :]
    row = i * OUT_POINTS + tl.arange(0, OUT_POINTS)[:, None]

    y = _mix_channels(x_ptr, m_ptr, POINTS, WIDTH, DEPTH, PRECISION)
    n, _ = _normalise(y, POINTS * WIDTH)
    z = tl.maximum(n, 0.0).to(x_ptr.dtype.element_ty)
    s = tl.load(s_ptr + row * POINTS + point)
    y = tl.dot(s, z, input_precision=PRECISION)
    n, _ = _normalise(y, OUT_POINTS * WIDTH)
    tl.store(out_ptr + row * WIDTH + column, tl.maximum(n, 0.0).to(z.dtype))


@triton.jit
def backward(
    grad_ptr,
    x_ptr,
    m_ptr,
    s_ptr,
    dx_ptr,
    dm_ptr,
    ds_ptr,
    POINTS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_POINTS: tl.constexpr,
    DEPTH: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write the three gradients from that of ``out`` and the inputs.

    The result of spatial mixing is too big to stay in registers beside its
    gradient: tiles of it are computed three times, for the statistics, for
    the two means in the gradient of the norm, and for the gradients.
    """
    i = tl.program_id(0).to(tl.int64)
    x_ptr += i * (POINTS * WIDTH)
    m_ptr += i * (WIDTH * WIDTH)
    dtype = x_ptr.dtype.element_ty
    column = tl.arange(0, WIDTH)[None, :]
    row = i * OUT_POINTS + tl.arange(0, ROWS)[:, None]
    tile = row * POINTS + tl.arange(0, POINTS)[None, :]
    grad_tile = row * WIDTH + column

    y1 = _mix_channels(x_ptr, m_ptr, POINTS, WIDTH, DEPTH, PRECISION)
    n1, rstd1 = _normalise(y1, POINTS * WIDTH)
    z1 = tl.maximum(n1, 0.0).to(dtype)

    mean, variance = 0.0, 0.0
    for k in range(0, OUT_POINTS, ROWS):
        s = tl.load(s_ptr + tile + k * POINTS)
        y2 = tl.dot(s, z1, input_precision=PRECISION)
        # Chan's update: sums of squares would cancel.
        tile_mean = tl.sum(y2) / (ROWS * WIDTH)
        y2 -= tile_mean
        shift = tile_mean - mean
        weight = ROWS / (k + ROWS)
        spread = tl.sum(y2 * y2) / (ROWS * WIDTH)
        spread += shift * shift * (1 - weight)
        mean += shift * weight
        variance += (spread - variance) * weight
    rstd2 = _rstd(variance)

    grad_mean, grad_n_mean = 0.0, 0.0
    for k in range(0, OUT_POINTS, ROWS):
        s = tl.load(s_ptr + tile + k * POINTS)
        n2 = (tl.dot(s, z1, input_precision=PRECISION) - mean) * rstd2
        grad = tl.load(grad_ptr + grad_tile + k * WIDTH).to(tl.float32)
        grad = tl.where(n2 > 0, grad, 0.0)
        grad_mean += tl.sum(grad) / (OUT_POINTS * WIDTH)
        grad_n_mean += tl.sum(grad * n2) / (OUT_POINTS * WIDTH)

    dz1 = tl.full((POINTS, WIDTH), 0.0, tl.float32)
    for k in range(0, OUT_POINTS, ROWS):
        s = tl.load(s_ptr + tile + k * POINTS)
        n2 = (tl.dot(s, z1, input_precision=PRECISION) - mean) * rstd2
        grad = tl.load(grad_ptr + grad_tile + k * WIDTH).to(tl.float32)
        grad = tl.where(n2 > 0, grad, 0.0)
        dy2 = (rstd2 * (grad - grad_mean - n2 * grad_n_mean)).to(dtype)
        ds = tl.dot(dy2, tl.trans(z1), input_precision=PRECISION)
        tl.store(ds_ptr + tile + k * POINTS, ds.to(dtype))
        dz1 = tl.dot(tl.trans(s), dy2, dz1, input_precision=PRECISION)

    dn1 = tl.where(n1 > 0, dz1, 0.0)
    dn1_mean = tl.sum(dn1) / (POINTS * WIDTH)
    dn1_n_mean = tl.sum(dn1 * n1) / (POINTS * WIDTH)
    dy1 = (rstd1 * (dn1 - dn1_mean - n1 * dn1_n_mean)).to(dtype)

    # Inputs are read again, not held in registers all the way.
    dx_ptr += i * (POINTS * WIDTH)
    dm_ptr += i * (WIDTH * WIDTH)
    depth = tl.arange(0, DEPTH)
    x_tile = tl.arange(0, POINTS)[:, None] * WIDTH + depth[None, :]
    m_tile = depth[:, None] * WIDTH + column
    for k in range(0, WIDTH, DEPTH):
        m = tl.load(m_ptr + m_tile + k * WIDTH)
        dx = tl.dot(dy1, tl.trans(m), input_precision=PRECISION)
        tl.store(dx_ptr + x_tile + k, dx.to(dtype))
        x = tl.load(x_ptr + x_tile + k)
        dm = tl.dot(tl.trans(x), dy1, input_precision=PRECISION)
        tl.store(dm_ptr + m_tile + k * WIDTH, dm.to(dtype))


INTERPRETED = not isinstance(forward, triton.JITFunction)
