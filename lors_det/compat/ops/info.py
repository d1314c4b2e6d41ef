# SPDX-License-Identifier: Apache-2.0
"""What ``mmcv.utils.collect_env`` reports about the extension's build."""

_TEXT = 'none (stand-in for mmcv._ext by lors_det)'


def get_compiler_version() -> str:
    """Return a text that says that nothing was compiled."""
    return _TEXT


def get_compiling_cuda_version() -> str:
    """Return a text that says that nothing was compiled."""
    return _TEXT
