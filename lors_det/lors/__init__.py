# SPDX-License-Identifier: Apache-2.0
"""LORS: the weights of a stack of identical layers as shared plus low-rank.

Pure torch: nothing here knows about detection.
"""

from lors_det.lors.accounting import ParameterCount, count_parameters
from lors_det.lors.config import MODES, StackConfig
from lors_det.lors.factorise import factorise
from lors_det.lors.fit import FitReport
from lors_det.lors.fold import fold
from lors_det.lors.inputs import record_inputs
from lors_det.lors.lorsify import lorsify
from lors_det.lors.stacks import (
    AdaptiveStack,
    StackedLayerNorm,
    StackedLinear,
)

__all__ = [
    'MODES',
    'AdaptiveStack',
    'FitReport',
    'ParameterCount',
    'StackConfig',
    'StackedLayerNorm',
    'StackedLinear',
    'count_parameters',
    'factorise',
    'fold',
    'lorsify',
    'record_inputs',
]
