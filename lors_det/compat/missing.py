# SPDX-License-Identifier: Apache-2.0
"""The error of the ops of ``mmcv._ext`` that the stand-in lacks."""


class MissingOpError(NotImplementedError):
    """An op was called that only mmcv's compiled extension has.

    Args:
        what: What is missing, like ``The op 'roi_pool_forward'``.
    """

    def __str__(self) -> str:
        """Return a message that names the op and says how to get it."""
        return (
            f"{self.args[0]} needs mmcv's compiled extension (mmcv._ext), "
            'which this environment lacks; the stand-in of lors_det does not '
            'have it. In an environment with torch and a C++ compiler, `pip '
            'install --no-build-isolation --no-binary onedl-mmcv onedl-mmcv` '
            'builds one; see also '
            'https://mmcv.readthedocs.io/en/latest/get_started/installation.html'
        )
