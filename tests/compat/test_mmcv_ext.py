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
from lors_det.compat.ops import SERVED

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
    """The served ops are there under their names, and so is any other."""
    for name in SERVED:
        assert getattr(ext, name).__name__ == name
    assert set(SERVED) <= set(dir(ext))
    assert ext.nms is ext.nms
    assert hasattr(ext, 'an_op_of_some_later_version')
    for name in ('__file__', '__path__', '_repr_html_'):
        assert not hasattr(ext, name)


def test_missing_op_says_so_when_called(ext: StandInExt) -> None:
    """An op that is not served names itself and the way to get it."""
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
    """The report of the environment says that nothing was compiled."""
    assert 'lors_det' in get_compiler_version()
    assert 'lors_det' in get_compiling_cuda_version()


def test_nothing_is_imported_early(tmp_path: Path) -> None:
    """The stand-in is offered without an import of mmcv or of an op."""
    fake_mmcv(tmp_path, None)
    check_ok(
        'import sys\n'
        'import lors_det.compat as compat\n'
        'assert compat.ensure_mmcv_ext() and compat.is_stand_in()\n'
        "assert 'mmcv' not in sys.modules\n"
        'import mmcv._ext\n'
        "assert 'lors_det.compat.ops.nms' not in sys.modules\n",
        tmp_path,
    )


def test_module_has_a_spec(tmp_path: Path) -> None:
    """The module is found by importlib, and a second call adds nothing."""
    fake_mmcv(tmp_path, None)
    check_ok(
        'import importlib.util, sys\n'
        'import lors_det.compat as compat\n'
        "assert importlib.util.find_spec('mmcv._ext') is not None\n"
        "assert importlib.util.find_spec('mmcv._other') is None\n"
        'import mmcv._ext as ext\n'
        "assert ext.__spec__ is importlib.util.find_spec('mmcv._ext')\n"
        'before = list(sys.meta_path)\n'
        'assert compat.ensure_mmcv_ext() and compat.is_stand_in()\n'
        'assert sys.meta_path == before\n',
        tmp_path,
    )


@pytest.mark.slow
def test_mmdet_imports_in_a_new_process() -> None:
    """All of mmdet's models import, and none holds a placeholder."""
    check_ok(
        'import lors_det, mmdet.apis, mmdet.models, mmcv.ops\n'
        'from mmdet.models.losses import focal_loss\n'
        'assert mmdet.apis.inference.RoIPool is mmcv.ops.RoIPool\n'
        'assert focal_loss._sigmoid_focal_loss'
        ' is mmcv.ops.sigmoid_focal_loss\n'
    )


def test_late_import_is_told(tmp_path: Path) -> None:
    """Modules of mmdet that came first hold placeholders: a warning."""
    fake_mmcv(tmp_path, None)
    check_ok(
        'import sys, types, warnings\n'
        "name = 'mmdet.structures.mask.structures'\n"
        'sys.modules[name] = types.ModuleType(name)\n'
        'with warnings.catch_warnings(record=True) as caught:\n'
        "    warnings.simplefilter('always')\n"
        '    import lors_det\n'
        "assert any('import lors_det first' in str(w.message)"
        ' for w in caught)\n',
        tmp_path,
    )


def test_real_extension_is_preferred(tmp_path: Path) -> None:
    """A real extension is left alone, even if it is found only later."""
    late, early = tmp_path / 'late', tmp_path / 'early'
    for directory in (late, early):
        directory.mkdir()
    fake_mmcv(early, "nms = 'real'")
    fake_mmcv(late, None)
    check_ok(
        'import sys\n'
        'before = list(sys.meta_path)\n'
        'import lors_det.compat as compat\n'
        'assert not compat.ensure_mmcv_ext() and not compat.is_stand_in()\n'
        'assert sys.meta_path == before\n'
        'import mmcv._ext as ext\n'
        "assert ext.nms == 'real' and not hasattr(ext, 'softnms')\n"
        'assert not compat.ensure_mmcv_ext() and not compat.is_stand_in()\n',
        early,
    )
    check_ok(
        'import importlib.util, sys\n'
        'import lors_det.compat as compat\n'
        'assert compat.ensure_mmcv_ext()\n'
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name == 'mmcv._ext':\n"
        '            return importlib.util.spec_from_file_location(\n'
        f'                name, {str(early / "mmcv" / "_ext.py")!r})\n'
        'sys.meta_path.append(Finder())\n'
        'assert not compat.is_stand_in()\n'
        'import mmcv._ext as ext\n'
        "assert ext.nms == 'real'\n"
        'assert not compat.ensure_mmcv_ext() and not compat.is_stand_in()\n',
        late,
    )


def test_broken_extension_raises_its_own_error(tmp_path: Path) -> None:
    """A real extension that does not load is not hidden."""
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


@pytest.mark.parametrize(
    'block',
    [
        "sys.modules['mmcv'] = None",
        "sys.meta_path.insert(0, Block('mmcv'))",
        "sys.meta_path.insert(0, Block('mmcv._ext'))",
    ],
)
def test_without_mmcv(block: str, tmp_path: Path) -> None:
    """The package imports, and nothing is changed."""
    fake_mmcv(tmp_path, None)
    check_ok(
        'import sys\n'
        'class Block:\n'
        '    def __init__(self, blocked):\n'
        '        self.blocked = blocked\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name in (self.blocked, 'mmdet', 'mmengine'):\n"
        '            raise ModuleNotFoundError(name, name=name)\n'
        f'{block}\n'
        'before = list(sys.meta_path)\n'
        'import lors_det.compat as compat\n'
        'assert not compat.ensure_mmcv_ext() and not compat.is_stand_in()\n'
        'assert sys.meta_path == before\n',
        tmp_path,
    )


@pytest.mark.slow
def test_spawned_worker(tmp_path: Path) -> None:
    """A data loader's spawned worker has the stand-in too."""
    script = tmp_path / 'load.py'
    script.write_text(
        'import lors_det\n'
        'from torch.utils.data import DataLoader\n'
        'class Boxes:\n'
        '    def __len__(self):\n'
        '        return 1\n'
        '    def __getitem__(self, index):\n'
        '        import mmcv.ops\n'
        '        import mmdet.datasets\n'
        '        from mmdet.structures.mask import structures\n'
        '        return structures.roi_align is mmcv.ops.roi_align\n'
        "if __name__ == '__main__':\n"
        '    loader = DataLoader(\n'
        "        Boxes(), num_workers=1, multiprocessing_context='spawn')\n"
        '    assert [bool(batch) for batch in loader] == [True]\n'
    )
    check_ok(script)
