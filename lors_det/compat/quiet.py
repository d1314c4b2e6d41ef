# SPDX-License-Identifier: Apache-2.0
"""Import mmdet without its remarks on packages that nobody asked for."""

import contextlib
import io
import warnings

warnings.filterwarnings('ignore', 'faster_coco_eval is not installed')
with contextlib.redirect_stdout(io.StringIO()):  # 'Could not import OneDL'
    import mmdet.datasets
    import mmdet.evaluation  # noqa: F401
