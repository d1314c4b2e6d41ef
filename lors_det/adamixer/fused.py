# SPDX-License-Identifier: Apache-2.0
"""Adaptive mixing of one stage in one kernel, for CUDA devices (Triton).

The same function as in `lors_det.adamixer.mixing`: channel mixing, norm,
ReLU, spatial mixing, norm, ReLU, between the sampled features and the output
projection. What lies between stays in on-chip memory. Only the three inputs
are saved for the backward, which computes the rest again.

With P points in, O points out, c channels and e bytes a number, a program,
that is one query and group, has these floors:

| | bytes | multiply-adds |
| --- | --- | --- |
| forward | e (Pc + cc + OP + Oc) | Pcc + OPc |
| backward | e (2 (Pc + cc + OP) + Oc) | 3 Pcc + 5 OPc |

LORS's default (P 64, c 128, O 128) in bfloat16: 96 KiB and 2.1 M, then
160 KiB and 8.4 M. AdaMixer's (32, 64, 128): 36 KiB and 0.4 M, then 56 KiB
and 1.7 M. At about 100 operations a byte or fewer, memory is the bound where
tensor cores do the products. Float32 has them only with TF32 allowed
(``torch.backends.cuda.matmul.allow_tf32``); without, it is exact and slow.

Compiled for sm_80 and sm_90 and run in Triton's interpreter, but not yet
timed on a GPU; nothing selects it by default.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

# How much of the channels, and of the points out, is at hand at once. With
# 32 and 128 registers a thread, the backward of both default shapes does not
# spill on sm_90 in 16 bits, and two programs fit on a multiprocessor.
TILE = 32
REGISTERS = 128
MAX_TILE = 128 * 128
HAS_TRITON = importlib.util.find_spec('triton') is not None
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fused_mixing(sampled: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    """Mix channels, then points, each with norm and ReLU.

    Products accumulate and norms are computed in float32; what enters the
    second product, and the gradients that enter products, are rounded to the
    inputs' type. Under autocast that is autocast's type.

    Args:
        sampled: (B, N, G, P, c) sampled features.
        channel: (B, N, G, c, c) kernels of channel mixing.
        spatial: (B, N, G, O, P) kernels of spatial mixing.

    Returns:
        (B, N, G, O, c) in the inputs' type, or autocast's.

    Raises:
        ValueError: If `why_not_fused` has a reason; it is the message.
    """
    reason = why_not_fused(sampled, channel, spatial)
    if reason is not None:
        raise ValueError(
            f'decoder.fused_mixing=True is not possible: {reason}'
        )
    dtype = _dtype(sampled)
    return torch.ops.lors_det.fused_mixing(
        sampled.to(dtype), channel.to(dtype), spatial.to(dtype)
    )


def why_not_fused(
    sampled: Tensor, channel: Tensor, spatial: Tensor
) -> str | None:
    """Why `fused_mixing` cannot take these tensors.

    Args:
        sampled: (B, N, G, P, c).
        channel: (B, N, G, c, c).
        spatial: (B, N, G, O, P).

    Returns:
        The reason in one line, or None if it can.
    """
    device = sampled.device
    reason = _why_not_device(device) or _why_not_shapes(
        sampled.shape, channel.shape, spatial.shape
    )
    if reason is not None:
        return reason
    dtype = _dtype(sampled)
    for x in (sampled, channel, spatial):
        if x.device != device:
            return f'features on {device}, kernels on {x.device}'
        if _dtype(x) != dtype:
            return f'{dtype} features, {x.dtype} kernels'
    if dtype not in DTYPES:
        return f'{dtype} is not bfloat16, float16 or float32'
    if _kernels().INTERPRETED:
        if dtype == torch.bfloat16:
            return "Triton's interpreter multiplies bfloat16 wrongly"
        return None
    need = on_chip_bytes(*_sizes(sampled, spatial), dtype.itemsize)
    limit = _on_chip_limit(device)
    if need > limit:
        return f'needs {need} bytes of shared memory, {device} has {limit}'
    return None


def _why_not_device(device: torch.device) -> str | None:
    if not HAS_TRITON:
        return 'triton is not installed'
    if _kernels().INTERPRETED:
        return None
    if device.type != 'cuda' or torch.version.hip is not None:
        return f'device {device} is not a CUDA device'
    if torch.cuda.get_device_properties(device).major < 8:
        return f'{device} is older than compute capability 8.0'
    return None


def _why_not_shapes(
    sampled: torch.Size, channel: torch.Size, spatial: torch.Size
) -> str | None:
    *leading, points, width = sampled
    out_points = spatial[-2]
    if channel != (*leading, width, width) or spatial != (
        *leading, out_points, points
    ):  # fmt: skip
        return (
            f'channel kernels {tuple(channel)} and spatial kernels '
            f'{tuple(spatial)} do not fit features {tuple(sampled)}'
        )
    for size in (points, width, out_points):
        if size < 16 or size & (size - 1):
            return f'size {size} is not a power of two from 16'
    most = max(points, out_points)
    if most * width > MAX_TILE:
        return f'{most} points of {width} channels are over {MAX_TILE} numbers'
    return None


def _on_chip_limit(device: torch.device) -> int:
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin


def on_chip_bytes(
    points: int, width: int, out_points: int, itemsize: int
) -> int:
    """Shared memory that the kernels take at most, in bytes.

    A bound fitted to what the compiler reports for sm_80 and sm_90.

    Args:
        points: Number P of points in.
        width: Number c of channels.
        out_points: Number O of points out.
        itemsize: Bytes of a number.
    """
    return itemsize * max(
        points * (out_points + width),
        out_points * width,
        2 * points * width + 3 * TILE * (points + width),
    )


def forward_options(
    points: int, width: int, out_points: int, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the kernels are compiled with.

    Args:
        points: Number P of points in.
        width: Number c of channels.
        out_points: Number O of points out.
        dtype: Type of the tensors.

    Returns:
        Constants of both kernels, by name, and options of the compiler; the
        backward also takes ``ROWS`` and, in 16 bits, ``maxnreg``.
    """
    tf32 = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    constants = {
        'POINTS': points,
        'WIDTH': width,
        'OUT_POINTS': out_points,
        'DEPTH': min(TILE, width),
        'PRECISION': 'tf32' if tf32 else 'ieee',
    }
    large = 2 * points * width >= MAX_TILE or out_points * width >= MAX_TILE
    return constants, {'num_warps': 8 if large else 4, 'num_stages': 2}


def backward_options(
    points: int, width: int, out_points: int, dtype: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same as `forward_options`, for the kernel of the gradients."""
    constants, options = forward_options(points, width, out_points, dtype)
    constants['ROWS'] = min(TILE, out_points)
    if dtype != torch.float32:
        options['maxnreg'] = REGISTERS
    return constants, options


def _kernels() -> Any:
    """The module of the kernels, which needs triton."""
    from lors_det.adamixer import fused_kernels

    return fused_kernels


def _dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


# Operators, not an autograd.Function: torch.compile then takes them whole.
@torch.library.custom_op(
    'lors_det::fused_mixing',
    mutates_args=(),
    schema='(Tensor sampled, Tensor channel, Tensor spatial) -> Tensor',
)
def _forward(sampled: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    out = _forward_fake(sampled, channel, spatial)
    constants, options = forward_options(
        *_sizes(sampled, spatial), sampled.dtype
    )
    with torch.cuda.device_of(sampled):
        _kernels().forward[_programs(sampled)](
            sampled.contiguous(), channel.contiguous(), spatial.contiguous(),
            out, **constants, **options,
        )  # fmt: skip
    return out


@_forward.register_fake
def _forward_fake(sampled: Tensor, channel: Tensor, spatial: Tensor) -> Tensor:
    return sampled.new_empty(*spatial.shape[:-1], sampled.shape[-1])


@torch.library.custom_op(
    'lors_det::fused_mixing_backward',
    mutates_args=(),
    schema='(Tensor grad, Tensor sampled, Tensor channel, Tensor spatial)'
    ' -> (Tensor, Tensor, Tensor)',
)
def _backward(
    grad: Tensor, sampled: Tensor, channel: Tensor, spatial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad, sampled, channel, spatial)
    constants, options = backward_options(
        *_sizes(sampled, spatial), sampled.dtype
    )
    with torch.cuda.device_of(sampled):
        _kernels().backward[_programs(sampled)](
            grad.contiguous(), sampled.contiguous(), channel.contiguous(),
            spatial.contiguous(), *grads, **constants, **options,
        )  # fmt: skip
    return grads


@_backward.register_fake
def _backward_fake(
    grad: Tensor, sampled: Tensor, channel: Tensor, spatial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        sampled.new_empty(sampled.shape),
        channel.new_empty(channel.shape),
        spatial.new_empty(spatial.shape),
    )


def _programs(sampled: Tensor) -> tuple[int]:
    return (math.prod(sampled.shape[:-2]),)


def _sizes(sampled: Tensor, spatial: Tensor) -> tuple[int, int, int]:
    points, width = sampled.shape[-2:]
    return points, width, spatial.shape[-2]


def _save_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.lors_det.fused_mixing_backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_gradients, setup_context=_save_inputs)
