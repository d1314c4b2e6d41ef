# SPDX-License-Identifier: Apache-2.0
"""Low-rank residual structure (LORS) for detectors in MMDetection."""

from lors_det.compat import ensure_mmcv_ext

ensure_mmcv_ext()
