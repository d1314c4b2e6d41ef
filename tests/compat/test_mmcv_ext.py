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
)

import lors_det
from lors_det.compat import MissingOpError
from lors_det.compat.mmcv_ext import StandInExt
from lors_det.compat.ops import OPS

ROOT = Path(lors_det.__file__).parents[1]


def run(script: Path | str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script, or code, with ``path`` before the repository's root."""
    args = [str(script)] if isinstance(script, Path) else ['-c', script]
    return subprocess.run(
        [sys.executable, '-W', 'ignore', *args],
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join(map(str, (*path, ROOT))),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def check_ok(script: Path | str, *path: Path) -> None:
    """Run a script and require that it succeeds."""
    done = run(script, *path)
    assert done.returncode == 0, done.stderr


def fake_mmcv(directory: Path, ext: str | None) -> Path:
    """Write a package mmcv, with ``ext`` as its ``_ext``, if any."""
    package = directory / 'mmcv'
    package.mkdir()
    (package / '__init__.py').write_text('')
    if ext is not None:
        (package / '_ext.py').write_text(ext)
    return directory


def test_module_holds_every_op(ext: StandInExt) -> None:
    """The ops are there under their names, and placeholders for all others."""
    for name in OPS:
        assert getattr(ext, name).__name__ == name
    assert set(OPS) <= set(dir(ext))
    assert ext.nms is ext.nms
    assert hasattr(ext, 'an_op_of_some_later_version')
    for name in ('__file__', '__path__', '_repr_html_'):
        assert not hasattr(ext, name)


def test_missing_op_says_so_when_called(ext: StandInExt) -> None:
    """The error names the op and says how to get it; both can be pickled."""
    layer = RoIPool(2)
    features = torch.zeros(1, 1, 4, 4)
    message = r"'roi_pool_forward'.*--no-binary onedl-mmcv"
    with pytest.raises(MissingOpError, match=message) as caught:
        layer(features, torch.zeros(1, 5))
    assert isinstance(caught.value, NotImplementedError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    missing = ext.roi_pool_forward
    assert pickle.loads(pickle.dumps(missing)) == missing


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
    fake_mmcv(tmp_path, source)
    # Without the call in lors_det/__init__.py.
    header = """
import importlib.machinery, importlib.util, sys, types, warnings
package = types.ModuleType('lors_det')
package.__path__ = [{path!r}]
sys.modules['lors_det'] = package
import lors_det.compat as compat
"""
    path = str(ROOT / 'lors_det')
    check_ok(header.format(path=path) + script, tmp_path)


def test_broken_extension_raises_its_own_error(tmp_path: Path) -> None:
    fake_mmcv(tmp_path, "raise ImportError('undefined symbol: _ZN3c10')")
    done = run(
        'import lors_det.compat as compat\n'
        'assert not compat.ensure_mmcv_ext()\n'
        'import mmcv._ext\n',
        tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith(
        'ImportError: undefined symbol: _ZN3c10'
    )


@pytest.mark.slow
def test_mmdet_imports_in_a_new_process() -> None:
    """All of mmdet's models import, and none holds a placeholder."""
    check_ok(
        """
import lors_det, mmdet.apis, mmdet.models, mmcv.ops
from mmdet.models.losses import focal_loss
assert mmdet.apis.inference.RoIPool is mmcv.ops.RoIPool
assert focal_loss._sigmoid_focal_loss is mmcv.ops.sigmoid_focal_loss
"""
    )


@pytest.mark.slow
def test_spawned_worker(tmp_path: Path) -> None:
    """A data loader's spawned worker has the stand-in too."""
    script = tmp_path / 'load.py'
    script.write_text(
        """
import lors_det
from torch.utils.data import DataLoader
class Boxes:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        import mmcv.ops
        import mmdet.datasets
        from mmdet.structures.mask import structures
        return structures.roi_align is mmcv.ops.roi_align
if __name__ == '__main__':
    loader = DataLoader(
        Boxes(), num_workers=1, multiprocessing_context='spawn')
    assert [bool(batch) for batch in loader] == [True]
"""
    )
    check_ok(script)
