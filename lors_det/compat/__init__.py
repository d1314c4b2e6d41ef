# SPDX-License-Identifier: Apache-2.0
"""What lets ``mmcv.ops`` import and run without its compiled extension."""

from lors_det.compat.missing import MissingOpError
from lors_det.compat.mmcv_ext import ensure_mmcv_ext, is_stand_in

__all__ = ['MissingOpError', 'ensure_mmcv_ext', 'is_stand_in']
