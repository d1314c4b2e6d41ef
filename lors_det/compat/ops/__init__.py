# SPDX-License-Identifier: Apache-2.0
"""The ops of ``mmcv._ext`` that the stand-in has, in torch and torchvision.

Each op has the name and the parameters of the compiled one and writes to the
same output buffers. Half-precision tensors are computed in float32 and rounded
once at the end, on every device.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

# The op and the module of this package that defines it. Not imported here:
# this package is imported with lors_det, and the ops need torch.
OPS = {
    'deform_conv_backward_input': 'deform_conv',
    'deform_conv_backward_parameters': 'deform_conv',
    'deform_conv_forward': 'deform_conv',
    'get_compiler_version': 'info',
    'get_compiling_cuda_version': 'info',
    'modulated_deform_conv_backward': 'deform_conv',
    'modulated_deform_conv_forward': 'deform_conv',
    'ms_deform_attn_backward': 'deform_attn',
    'ms_deform_attn_forward': 'deform_attn',
    'nms': 'nms',
    'roi_align_backward': 'roi_align',
    'roi_align_forward': 'roi_align',
    'sigmoid_focal_loss_backward': 'focal_loss',
    'sigmoid_focal_loss_forward': 'focal_loss',
    'softnms': 'nms',
}


def load_op(name: str) -> Callable[..., Any] | None:
    """Import and return an op, or None if the stand-in does not have it.

    Args:
        name: The op's name in ``mmcv._ext``.
    """
    if name not in OPS:
        return None
    op: Callable[..., Any] = getattr(
        import_module(f'{__name__}.{OPS[name]}'), name
    )
    return op
