# SPDX-License-Identifier: Apache-2.0
"""What stands for an op of ``mmcv._ext`` that is not served."""

from dataclasses import dataclass
from typing import Any, NoReturn

_ADVICE = (
    "{what} needs mmcv's compiled extension (mmcv._ext), which this "
    'environment lacks; the stand-in of lors_det does not serve it. In an '
    'environment with torch and a C++ compiler, `pip install '
    '--no-build-isolation --no-binary onedl-mmcv onedl-mmcv` builds one; see '
    'also https://mmcv.readthedocs.io/en/latest/get_started/installation.html'
)


class MissingOpError(NotImplementedError):
    """An op of mmcv's compiled extension was called and is not served."""


def missing_op_error(what: str) -> MissingOpError:
    """Return the error that says what is missing and how to get it.

    Args:
        what: The op, as the message is to name it.
    """
    return MissingOpError(_ADVICE.format(what=what))


@dataclass(frozen=True)
class MissingOp:
    """A callable that stands for one op and raises when it is called.

    ``mmcv.ops`` asserts at import that every op exists, so an op that is not
    served must still be there; only a model that uses it may fail.

    Args:
        name: The op's name in ``mmcv._ext``.
    """

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise, whatever the arguments.

        Args:
            args: Ignored.
            kwargs: Ignored.

        Raises:
            MissingOpError: Always.
        """
        raise missing_op_error(f'The op {self.name!r}')
