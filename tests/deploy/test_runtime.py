# SPDX-License-Identifier: Apache-2.0
"""The file that is copied to a device."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.command_lines import ROOT

from lors_det.deploy import runtime
from lors_det.deploy.runtime import Detector

from .conftest import Export, reference

LORS = 'lors-adamixer'
IMAGES = sorted((ROOT / 'demo/bccd/images').glob('*.jpg'))[:3]
#: Refuses all packages that the runtime is to do without.
ALONE = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top in ('torch', 'lors_det', 'PIL', 'pandas', 'onnx') or (
            top.startswith('mm') and top != 'mmap'
        ):
            raise ImportError(f'{name} is refused')

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_equal_to_torch(exported: Export) -> None:
    """With images of two sizes."""
    images = [cv2.imread(str(path)) for path in IMAGES]
    images[1] = images[1][:, :400]
    detector = Detector(exported(LORS, 'onnx').path)
    assert detector.classes == ['RBC', 'WBC', 'Platelets']
    for ours, sample in zip(
        detector(images), reference(LORS).predictor(images), strict=True
    ):
        theirs = sample.pred_instances.numpy()
        assert ours.scores.shape == (60,)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-3)
        sure = theirs.scores > 0.3
        assert sure.sum() > 5
        np.testing.assert_array_equal(ours.labels[sure], theirs.labels[sure])
        np.testing.assert_allclose(
            ours.boxes[sure], theirs.bboxes[sure], atol=0.5
        )


@pytest.mark.parametrize(('text', 'threads'), [('', 0), ('3', 3), ('4,2', 4)])
def test_threads(
    text: str, threads: int, exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('OMP_NUM_THREADS', text)
    session = Detector(exported(LORS, 'onnx').path).session
    assert session.get_session_options().intra_op_num_threads == threads


def test_wrong_number_of_threads(
    exported: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('OMP_NUM_THREADS', 'two')
    with pytest.raises(ValueError, match='OMP_NUM_THREADS=two: expected a nu'):
        Detector(exported(LORS, 'onnx').path)


def test_alone(exported: Export, tmp_path: Path) -> None:
    """A copy of the file, and neither torch nor mm* nor lors_det."""
    copied = tmp_path / 'detect.py'
    shutil.copy(runtime.__file__, copied)
    done = subprocess.run(
        [sys.executable, '-c', ALONE, copied, exported(LORS, 'onnx').path,
         IMAGES[0], '--score', '0.4'],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    table = reference(LORS).predictor.to_table(
        reference(LORS).predictor(IMAGES[0])
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == (table.score >= 0.4).sum() > 5
    for (_, name, score, *box), wanted in zip(
        rows, table[: len(rows)].itertuples(), strict=True
    ):
        assert name == wanted[3]
        assert float(score) == pytest.approx(wanted.score, abs=2e-3)
        assert [*map(float, box)] == pytest.approx([*wanted[5:]], abs=0.5)


def test_bad_input(
    exported: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each."""
    path = exported(LORS, 'onnx').path
    detector = Detector(path)
    with pytest.raises(ValueError, match=r'image: float64 \(4, 4\): expected'):
        detector([np.zeros((4, 4))])
    zeros = np.zeros((1, 3, 100, 128), np.float32)
    with pytest.raises(ValueError, match='expected sides divisible by 32'):
        detector.run({'images': zeros})
    (tmp_path / 'x.onnx').write_bytes(path.read_bytes()[:9999])
    (tmp_path / 'x.jpg').write_bytes(IMAGES[0].read_bytes()[:100])
    for arguments, message in (
        (['no.onnx', IMAGES[0]], 'error: no.onnx: no such file'),
        ([tmp_path / 'x.onnx', IMAGES[0]], 'x.onnx: no ONNX model, or cut of'),
        ([path, tmp_path / 'x.jpg'], 'x.jpg: no image, or cut off'),
    ):
        monkeypatch.setattr(sys, 'argv', ['runtime.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as error:
            runtime.main()
        assert message in str(error.value)
