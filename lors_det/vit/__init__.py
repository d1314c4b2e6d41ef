# SPDX-License-Identifier: Apache-2.0
"""DeiT on stacked weights: the second system of the LORS paper.

Importing this package registers its parts in mmengine's registries.
"""

from lors_det.vit.embed import PatchEmbedding
from lors_det.vit.encoder import ViTEncoder
from lors_det.vit.metric import Top1Accuracy
from lors_det.vit.model import ViTClassifier

__all__ = [
    'PatchEmbedding',
    'Top1Accuracy',
    'ViTClassifier',
    'ViTEncoder',
]
