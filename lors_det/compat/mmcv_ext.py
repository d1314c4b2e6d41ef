# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mmcv's compiled extension where it is missing.

``mmcv.ops`` imports ``mmcv._ext`` and asserts that it has every op, so
without the compiled extension neither ``mmcv.ops`` nor most of
``mmdet.models`` can be imported. The stand-in is offered by a finder at the
end of ``sys.meta_path`` that finds only ``mmcv._ext``. Putting a module into
``sys.modules`` would be shorter, but with a finder

- the import system prefers a real extension: the stand-in is made only when
  no other finder has one, and a real one that fails to load (because it was
  built for another torch, say) raises its own error;
- neither mmcv nor torch is imported before something asks for them;
- the module has a spec, which ``importlib.util.find_spec``,
  ``mmcv.utils.check_ops_exist`` and mmengine's ``mmcv_full_available`` need.

Import ``lors_det`` before the modules of mmdet that use ``mmcv.ops``: some of
them catch the ``ImportError`` and keep placeholders.
"""

import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from lors_det.compat.missing import MissingOp
from lors_det.compat.ops import OPS, load_op

_NAME = 'mmcv._ext'
# Marks the stand-in; isinstance would fail after a reload of this module.
_ORIGIN = 'lors_det.compat'
# One of the modules of mmdet that keep placeholders; mmdet.apis,
# mmdet.datasets and mmdet.models import it.
_PLACEHOLDER_MODULE = 'mmdet.structures.mask.structures'


class StandInExt(ModuleType):
    """The stand-in: every public name is an op or a placeholder for one."""

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
        op = load_op(name) or MissingOp(name)
        setattr(self, name, op)
        return op

    def __dir__(self) -> list[str]:
        """Return the names of the module's attributes and ops."""
        return sorted({*super().__dir__(), *OPS})


class StandInFinder(MetaPathFinder, Loader):
    """Finder and loader of the stand-in; finds only ``mmcv._ext``."""

    stand_in_for = _NAME

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the stand-in's spec if there is no real extension.

        Args:
            fullname: The module asked for.
            path: The directories of its parent package.
            target: Unused.
        """
        if fullname != _NAME or _has_real(path):
            return None
        return ModuleSpec(_NAME, self, origin=_ORIGIN)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a new stand-in module.

        Args:
            spec: The spec from :meth:`find_spec`.
        """
        return StandInExt(spec.name, "lors_det's stand-in for mmcv._ext.")

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: each op is imported when it is first used.

        Args:
            module: The stand-in module.
        """


def _is_ours(finder: object) -> bool:
    """Return whether a finder is a `StandInFinder`, also after a reload."""
    return getattr(finder, 'stand_in_for', None) == _NAME


def _has_real(path: Sequence[str] | None) -> bool:
    """Return whether another finder finds the extension.

    Finders after the stand-in's count too: an editable install may append one.
    A finder that raises counts as well: its error belongs to the import of the
    extension, not to this question.
    """
    for finder in sys.meta_path:
        if not _is_ours(finder) and hasattr(finder, 'find_spec'):
            try:
                spec = finder.find_spec(_NAME, path)
            except ImportError:
                return True
            if spec is not None:
                return True
    return False


def _mmcv_path() -> Sequence[str] | None:
    """Return the directories of the package mmcv without importing it."""
    try:
        spec = importlib.util.find_spec('mmcv')
    except (ImportError, ValueError):
        return None
    return None if spec is None else spec.submodule_search_locations


def _stand_in_applies() -> bool:
    """Return whether ``import mmcv._ext`` should import the stand-in."""
    if _NAME in sys.modules:
        spec = getattr(sys.modules[_NAME], '__spec__', None)
        return getattr(spec, 'origin', None) == _ORIGIN
    path = _mmcv_path()
    return path is not None and not _has_real(path)


def ensure_mmcv_ext() -> bool:
    """Offer the stand-in if mmcv is installed without its extension.

    Further calls change nothing. Looks for files and imports nothing.

    Returns:
        Whether the stand-in is in use; not if mmcv has a real extension or is
        not installed.
    """
    if not _stand_in_applies():
        return False
    if not any(map(_is_ours, sys.meta_path)):
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
