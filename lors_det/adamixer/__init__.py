# SPDX-License-Identifier: Apache-2.0
"""AdaMixer on MMDetection 3.x, on stacked weights.

Importing this package registers its parts in mmdet's registries.
"""

from lors_det.compat import quiet  # noqa: F401  # before others import mmdet

# isort: split
from lors_det.adamixer.criterion import SetCriterion
from lors_det.adamixer.decoder import AdaMixerDecoder, StageOutput
from lors_det.adamixer.detector import AdaMixer
from lors_det.adamixer.neck import SharedNormMapper

__all__ = [
    'AdaMixer',
    'AdaMixerDecoder',
    'SetCriterion',
    'SharedNormMapper',
    'StageOutput',
]
