# SPDX-License-Identifier: Apache-2.0
"""A stand-in for mmcv's compiled extension, where that is absent.

``mmcv.ops`` imports ``mmcv._ext`` and asserts that it holds every op, so a
pure-Python mmcv cannot import ``mmcv.ops``, and with it most of
``mmdet.models``. The stand-in is offered through a finder at the end of
``sys.meta_path`` that answers for ``mmcv._ext`` alone, rather than as a module
put into ``sys.modules`` at once, because then

- the import system itself prefers a real extension: the stand-in is made only
  when every other finder has said that there is none, and a real one that is
  found but fails to load (an ABI mismatch, say) raises its own error;
- neither mmcv nor torch is imported before something asks for them;
- the module has a spec, so ``importlib.util.find_spec`` and what builds on it
  (``mmcv.utils.check_ops_exist``, ``mmengine``'s ``mmcv_full_available``) see
  it.

A process that never imports ``lors_det`` is not affected. In one that does,
``lors_det`` has to be imported before the modules of mmdet that use
``mmcv.ops``: some of them catch the ``ImportError`` and keep placeholders.
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
from lors_det.compat.ops import SERVED, load_op

_NAME = 'mmcv._ext'
# Also the mark by which the stand-in is told from a real extension; class
# identity would not outlive a reload of this module.
_ORIGIN = 'lors_det.compat'
# Loaded by mmdet.apis, mmdet.datasets and mmdet.models, and among the first
# that fall back to a placeholder.
_PLACEHOLDER_MODULE = 'mmdet.structures.mask.structures'


class StandInExt(ModuleType):
    """The stand-in module: every public name is an op, served or missing."""

    def __getattr__(self, name: str) -> Any:
        """Return the served op of this name, else one that raises if called.

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
        """Return the module's own names and the served ops."""
        return sorted({*super().__dir__(), *SERVED})


class StandInFinder(MetaPathFinder, Loader):
    """Finder and loader of the stand-in, for ``mmcv._ext`` alone."""

    stand_in_for = _NAME

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the stand-in's spec if no other finder has the extension.

        Args:
            fullname: The module asked for.
            path: The directories of its parent package.
            target: Unused; part of the protocol.
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
        """Do nothing: the ops are loaded when they are first asked for.

        Args:
            module: The stand-in module.
        """


def _is_ours(finder: object) -> bool:
    """Return whether a finder is the stand-in's, of this load or another."""
    return getattr(finder, 'stand_in_for', None) == _NAME


def _has_real(path: Sequence[str] | None) -> bool:
    """Return whether any other finder answers for the extension.

    Also asks finders that come after the stand-in's: an editable install may
    append its own later. One that raises has answered: what it raises is for
    whoever imports the extension, not for who asks if there is one.
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
    loaded = sys.modules.get('mmcv')
    if loaded is not None:
        return getattr(loaded, '__path__', None)
    try:
        spec = importlib.util.find_spec('mmcv')
    except ImportError:
        return None
    return None if spec is None else spec.submodule_search_locations


def _stand_in_applies() -> bool:
    """Return whether importing ``mmcv._ext`` is to give the stand-in."""
    if _NAME in sys.modules:
        spec = getattr(sys.modules[_NAME], '__spec__', None)
        return getattr(spec, 'origin', None) == _ORIGIN
    path = _mmcv_path()
    return path is not None and not _has_real(path)


def is_stand_in() -> bool:
    """Return whether ``mmcv._ext`` is the stand-in, or would be if imported.

    False too while :func:`ensure_mmcv_ext` has not been called.
    """
    return any(map(_is_ours, sys.meta_path)) and _stand_in_applies()


def ensure_mmcv_ext() -> bool:
    """Offer the stand-in where mmcv is installed without its extension.

    Cheap and idempotent: it looks for files and imports nothing.

    Returns:
        True if the stand-in is in use, False if mmcv has a real extension or
        is not installed; nothing is changed then.
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
