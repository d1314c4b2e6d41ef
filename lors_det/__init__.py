# SPDX-License-Identifier: Apache-2.0
"""LORS and AdaMixer for MMDetection 3.x.

Import it before mmdet: where mmcv has no compiled extension, this import
provides a stand-in.
"""

from lors_det.compat import ensure_mmcv_ext, watch_mmengine
from lors_det.version import __version__

__all__ = ['__version__']

ensure_mmcv_ext()
watch_mmengine()
