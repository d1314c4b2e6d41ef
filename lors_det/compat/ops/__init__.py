# SPDX-License-Identifier: Apache-2.0
"""The ops of ``mmcv._ext`` that the stand-in has, in torch and torchvision.

Each op has the name and the parameters of the compiled one and writes to the
same output buffers. Half-precision tensors are computed in float32 and rounded
once at the end, on every device. torchvision is imported when an op needs it,
because that takes most of a second.
"""

from lors_det.compat.ops.deform_attn import (
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from lors_det.compat.ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from lors_det.compat.ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
)
from lors_det.compat.ops.nms import nms
from lors_det.compat.ops.roi_align import (
    roi_align_backward,
    roi_align_forward,
)

__all__ = [
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'roi_align_backward',
    'roi_align_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
]


def get_compiler_version() -> str:
    """Return a text for ``mmcv.utils.collect_env``: nothing was compiled."""
    return 'none (stand-in for mmcv._ext by lors_det)'


get_compiling_cuda_version = get_compiler_version
