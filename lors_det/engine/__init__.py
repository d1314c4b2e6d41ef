# SPDX-License-Identifier: Apache-2.0
"""What this project adds around mmengine's runner."""

from lors_det.engine.checks import UsageError

__all__ = ['UsageError']
