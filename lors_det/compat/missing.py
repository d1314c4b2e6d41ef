# SPDX-License-Identifier: Apache-2.0
"""Placeholders for the ops of ``mmcv._ext`` that the stand-in lacks."""

from dataclasses import dataclass
from typing import Any, NoReturn

_ADVICE = (
    "{what} needs mmcv's compiled extension (mmcv._ext), which this "
    'environment lacks; the stand-in of lors_det does not have it. In an '
    'environment with torch and a C++ compiler, `pip install '
    '--no-build-isolation --no-binary onedl-mmcv onedl-mmcv` builds one; see '
    'also https://mmcv.readthedocs.io/en/latest/get_started/installation.html'
)


class MissingOpError(NotImplementedError):
    """An op was called that only mmcv's compiled extension has."""


def missing_op_error(what: str) -> MissingOpError:
    """Return the error that names a missing op and how to get it.

    Args:
        what: The subject of the message, like ``The op 'roi_pool_forward'``.
    """
    return MissingOpError(_ADVICE.format(what=what))


@dataclass(frozen=True)
class MissingOp:
    """A placeholder for one op, which raises when it is called.

    ``mmcv.ops`` asserts at import that every op exists; only a model that uses
    a missing one may fail.

    Args:
        name: The op's name in ``mmcv._ext``.
    """

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error that says how to get the op.

        Args:
            args: Ignored.
            kwargs: Ignored.

        Raises:
            MissingOpError: Always.
        """
        raise missing_op_error(f'The op {self.name!r}')
