# SPDX-License-Identifier: Apache-2.0
"""Gradients by computing an op again, in a precision that all devices have."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: float64 if any tensor is, else float32.

    Half precision is raised to float32: not every kernel has it on every
    device, and sums over many samples lose digits in it.

    Args:
        tensors: The op's floating-point inputs, of any shape.
    """
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def gradients(
    op: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad_output: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Return the gradients of an op in its inputs, computed in ``dtype``.

    The compiled backward ops get the forward's inputs, not its graph, so the
    forward is computed again with one.

    Args:
        op: A function of ``inputs``, differentiable in each of them.
        inputs: Tensors of any shape.
        grad_output: The gradient in the output of ``op``, of its shape.
        dtype: The dtype to compute in.

    Returns:
        One gradient for each input, of its shape.
    """
    # The callers run inside a backward pass, where gradients are off.
    with torch.enable_grad():
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        output = op(*leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(dtype))
