# SPDX-License-Identifier: Apache-2.0
"""When the stand-in is offered, and what it is as a module."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmcv.ops import (
    RoIPool,
    get_compiler_version,
    get_compiling_cuda_version,
    sigmoid_focal_loss,
)
from mmdet.apis import inference
from mmdet.models.losses import focal_loss

import lors_det
from lors_det.compat import MissingOpError, ops
from lors_det.compat.mmcv_ext import StandInExt

ROOT = Path(lors_det.__file__).parents[1]


def test_module_holds_every_op(ext: StandInExt) -> None:
    """The ops are there under their names, and placeholders for all others."""
    for name in ops.__all__:
        assert getattr(ext, name) is getattr(ops, name)
    assert hasattr(ext, 'an_op_of_some_later_version')
    for name in ('__file__', '__path__', '_repr_html_'):
        assert not hasattr(ext, name)


def test_missing_op_says_so_when_called() -> None:
    """The error names the op and says how to get it; it can be pickled."""
    layer = RoIPool(2)
    features = torch.zeros(1, 1, 4, 4)
    message = r"'roi_pool_forward'.*--no-binary onedl-mmcv"
    with pytest.raises(MissingOpError, match=message) as caught:
        layer(features, torch.zeros(1, 5))
    assert isinstance(caught.value, NotImplementedError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_environment_report_names_the_stand_in() -> None:
    assert 'lors_det' in get_compiler_version()
    assert 'lors_det' in get_compiling_cuda_version()


#: What the package mmcv has as its ``_ext``, if anything, and a script.
SCRIPTS = {
    'no import of mmcv or of an op, a spec, a second call': (
        None,
        """
assert compat.ensure_mmcv_ext()
assert 'mmcv' not in sys.modules
assert importlib.util.find_spec('mmcv._ext') is not None
assert importlib.util.find_spec('mmcv._other') is None
import mmcv._ext as ext
assert 'lors_det.compat.ops.nms' not in sys.modules
assert ext.__spec__ is importlib.util.find_spec('mmcv._ext')
before = list(sys.meta_path)
assert compat.ensure_mmcv_ext()
assert sys.meta_path == before
""",
    ),
    'a real extension is preferred': (
        "nms = 'real'",
        """
assert not compat.ensure_mmcv_ext()
import mmcv._ext as ext
assert ext.nms == 'real' and not hasattr(ext, 'softnms')
assert not compat.ensure_mmcv_ext()
""",
    ),
    'a real extension is preferred even if its finder comes later': (
        None,
        """
assert compat.ensure_mmcv_ext()
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == 'mmcv._ext':
            return importlib.util.spec_from_loader(
                name, importlib.machinery.BuiltinImporter, origin='real')
sys.meta_path.append(Finder())
assert not compat.ensure_mmcv_ext()
assert importlib.util.find_spec('mmcv._ext').origin == 'real'
""",
    ),
    'a broken extension raises its own error': (
        "raise ImportError('undefined symbol: _ZN3c10')",
        """
assert not compat.ensure_mmcv_ext()
try:
    import mmcv._ext
except ImportError as error:
    assert str(error) == 'undefined symbol: _ZN3c10'
else:
    raise AssertionError
""",
    ),
    'mmcv is not installed': (
        None,
        """
sys.modules['mmcv'] = None
before = list(sys.meta_path)
assert not compat.ensure_mmcv_ext()
assert sys.meta_path == before
""",
    ),
    'finders raise': (
        None,
        """
class Block:
    def find_spec(self, name, path=None, target=None):
        if name in blocked:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
before = list(sys.meta_path)
for blocked in (['mmcv'], ['mmcv._ext']):
    assert not compat.ensure_mmcv_ext()
    assert sys.meta_path == before
""",
    ),
    'modules of mmdet that came first hold placeholders': (
        None,
        """
name = 'mmdet.structures.mask.structures'
sys.modules[name] = types.ModuleType(name)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    compat.ensure_mmcv_ext()
assert any('import lors_det first' in str(w.message) for w in caught)
""",
    ),
}


@pytest.mark.parametrize(
    ('source', 'script'), SCRIPTS.values(), ids=SCRIPTS.keys()
)
def test_stand_in(source: str | None, script: str, tmp_path: Path) -> None:
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    if source is not None:
        (package / '_ext.py').write_text(source)
    # Without the call in lors_det/__init__.py.
    header = """
import importlib.machinery, importlib.util, sys, types, warnings
package = types.ModuleType('lors_det')
package.__path__ = [{path!r}]
sys.modules['lors_det'] = package
import lors_det.compat as compat
"""
    code = header.format(path=str(ROOT / 'lors_det')) + script
    folders = os.pathsep.join(map(str, (tmp_path, ROOT)))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': folders},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_mmdet_holds_no_placeholder() -> None:
    """Of what it imported, after lors_det (see conftest.py)."""
    assert inference.RoIPool is RoIPool
    assert focal_loss._sigmoid_focal_loss is sigmoid_focal_loss
