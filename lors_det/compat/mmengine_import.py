# SPDX-License-Identifier: Apache-2.0
"""Watch the import of mmengine, now or later.

It learns where ``lors_det::PATH`` is. Where it is missing, the error says how
to install it: which of its two distributions is the user's choice, and
``lors_det.lors`` needs none.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from lors_det.errors import UsageError

NAMES = ('mmengine', 'mmcv', 'mmdet')
CONFIG = 'mmengine.config.config'


class MissingPackageError(UsageError, ModuleNotFoundError):
    """A package of OpenMMLab was imported, and none is installed."""


class MissingFinder(MetaPathFinder):
    """The last finder: asked for a package that no other finder found."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> None:
        """Raise `MissingPackageError` for a package of OpenMMLab."""
        if fullname in NAMES:
            raise MissingPackageError(
                f"{fullname} is missing: `pip install 'lors_det[onedl]'` "
                'installs the maintained mmengine, mmcv and mmdet, `pip '
                "install 'lors_det[openmmlab]'` the original ones",
                name=fullname,
            )


class ConfigFinder(MetaPathFinder):
    """Finds mmengine's config module once, to add our addresses to it."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of the other finders, which adds when it runs."""
        if fullname != CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                _add_addresses(module)

            spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec


def watch_mmengine() -> None:
    """Prepare the import of mmengine; imports nothing itself."""
    if CONFIG in sys.modules:
        _add_addresses(sys.modules[CONFIG])
    elif importlib.util.find_spec('mmengine'):
        sys.meta_path.insert(0, ConfigFinder())
    else:
        sys.meta_path.append(MissingFinder())


def _add_addresses(module: ModuleType) -> None:
    """Let configs and ``mmengine.hub`` resolve ``lors_det::PATH``."""
    from mmengine.config import utils

    utils.MODULE2PACKAGE['lors_det'] = 'lors_det'
    config = module.Config
    get_path = config._get_cfg_path

    def get_path_in_mmdet(*args: str) -> tuple[str, str | None]:
        path, scope = get_path(*args)
        # Our parts are registered in mmdet's scope.
        return path, None if scope == 'lors_det' else scope

    config._get_cfg_path = staticmethod(get_path_in_mmdet)
