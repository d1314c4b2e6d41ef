# SPDX-License-Identifier: Apache-2.0
"""LORS: the weights of a stack of identical layers as shared plus low-rank.

Pure torch: nothing here knows about detection.
"""

from lors_det.lors.accounting import count_parameters
from lors_det.lors.adaptive import AdaptiveStack
from lors_det.lors.config import MODES, StackConfig
from lors_det.lors.norm import StackedLayerNorm
from lors_det.lors.static import StackedLinear

__all__ = [
    'MODES',
    'AdaptiveStack',
    'StackConfig',
    'StackedLayerNorm',
    'StackedLinear',
    'count_parameters',
]
