# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mmcv's compiled extension, so that ``mmcv.ops`` works."""

from lors_det.compat.mmcv_ext import MissingOpError, ensure_mmcv_ext
from lors_det.compat.mmengine_import import watch_mmengine

__all__ = ['MissingOpError', 'ensure_mmcv_ext', 'watch_mmengine']
