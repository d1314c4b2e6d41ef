# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mmcv's compiled extension where it is missing.

``mmcv.ops`` imports ``mmcv._ext`` and asserts that it has every op, so
without the compiled extension neither ``mmcv.ops`` nor most of
``mmdet.models`` can be imported. A finder at the end of ``sys.meta_path``
offers the stand-in. With a finder, unlike a module in ``sys.modules``, a real
extension is preferred (one that fails to load raises its own error), neither
mmcv nor torch is imported early, and the module has a spec, which
``mmcv.utils.check_ops_exist`` and mmengine's ``mmcv_full_available`` need.

Import ``lors_det`` before the modules of mmdet that use ``mmcv.ops``: some of
them catch the ``ImportError`` and keep placeholders.
"""

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

_NAME = 'mmcv._ext'
_ORIGIN = 'lors_det.compat'  # marks the stand-in
# One of the modules of mmdet that keep placeholders; mmdet.apis,
# mmdet.datasets and mmdet.models import it.
_PLACEHOLDER_MODULE = 'mmdet.structures.mask.structures'


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


class StandInExt(ModuleType):
    """The stand-in: every public name is an op or a placeholder for one.

    ``mmcv.ops`` asserts at import that every op exists; only a model that uses
    a missing one may fail.
    """

    def __getattr__(self, name: str) -> Any:
        """Return the op of this name, or a placeholder if there is none.

        Args:
            name: The op's name.

        Raises:
            AttributeError: For a name with a leading underscore. No op has
                one, and Python and its tools probe modules for such names.
        """
        if name.startswith('_'):
            raise AttributeError(
                f'module {self.__name__!r} has no attribute {name!r}'
            )
        # Not at the top: the ops need torch.
        from lors_det.compat import ops

        op = getattr(ops, name) if name in ops.__all__ else None
        op = op or partial(_raise_missing, name)
        setattr(self, name, op)
        return op


class StandInFinder(MetaPathFinder, Loader):
    """Finder and loader of the stand-in; finds only ``mmcv._ext``."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the stand-in's spec if there is no real extension."""
        if fullname != _NAME or _has_real(path):
            return None
        return ModuleSpec(_NAME, self, origin=_ORIGIN)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a new stand-in module."""
        return StandInExt(spec.name, "lors_det's stand-in for mmcv._ext.")

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: ops are imported when one is first used."""


def ensure_mmcv_ext() -> bool:
    """Offer the stand-in if mmcv is installed without its extension.

    Further calls change nothing. Looks for files and imports nothing.

    Returns:
        Whether the stand-in is in use; not if mmcv has a real extension or is
        not installed.
    """
    if _NAME in sys.modules:
        spec = getattr(sys.modules[_NAME], '__spec__', None)
        return getattr(spec, 'origin', None) == _ORIGIN
    try:
        mmcv = importlib.util.find_spec('mmcv')
    except (ImportError, ValueError):
        return False
    if mmcv is None or _has_real(mmcv.submodule_search_locations):
        return False
    if not any(isinstance(x, StandInFinder) for x in sys.meta_path):
        sys.meta_path.append(StandInFinder())
        if _PLACEHOLDER_MODULE in sys.modules:
            warnings.warn(
                'mmdet was imported before lors_det and without a compiled '
                'mmcv, so some of its modules hold placeholders for ops of '
                'mmcv and will raise when they use them; import lors_det '
                'first.',
                RuntimeWarning,
                stacklevel=2,
            )
    return True


def _raise_missing(op: str, *args: Any, **kwargs: Any) -> NoReturn:
    """Stand for an op that is missing: calling it is an error."""
    raise MissingOpError(f'The op {op!r}')


def _has_real(path: Sequence[str] | None) -> bool:
    """Return whether another finder finds the extension.

    Finders after the stand-in's count too: an editable install may append one.
    A finder that raises counts as well: its error belongs to the import of the
    extension, not to this question.
    """
    for finder in sys.meta_path:
        if not isinstance(finder, StandInFinder):
            find_spec = getattr(finder, 'find_spec', None)
            try:
                if find_spec and find_spec(_NAME, path) is not None:
                    return True
            except ImportError:
                return True
    return False
