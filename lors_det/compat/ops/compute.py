# SPDX-License-Identifier: Apache-2.0
"""Run a function of tensors, or its gradients, in float32 or float64.

Half precision is raised to float32: not every kernel of torch has it on every
device, and long sums lose digits in it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def compute(op: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Return ``op(*inputs)``, computed in the working dtype."""
    dtype = working_dtype(*inputs)
    return op(*(tensor.to(dtype) for tensor in inputs))


def compute_gradients(
    op: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradient of an op in each input, in the working dtype.

    The backward ops of mmcv get the inputs of the forward op, not its graph,
    so the forward op is run again.
    """
    dtype = working_dtype(*inputs)
    # Gradients are off while mmcv's backward pass runs.
    with torch.enable_grad():
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        output = op(*leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(dtype))
