# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command_lines import run_here
from helpers.factories import build, detector_config
from mmengine.config import Config
from PIL import Image

from lors_det.predict import Predictor

PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': True},
    {
        'type': 'PackDetInputs',
        'meta_keys': ('ori_shape', 'img_shape', 'scale_factor'),
    },
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and configs and checkpoints of random detectors."""
    folder = tmp_path_factory.mktemp('explain')
    for mode in ('lors', 'dense'):
        model = detector_config(mode)
        data = {'dataset': {'pipeline': PIPELINE}}
        config = Config({'model': model, 'test_dataloader': data})
        config.dump(folder / f'{mode}.py')
        detector = build(model)
        classes = [f'class {i}' for i in range(detector.decoder.num_classes)]
        content = {
            'state_dict': detector.state_dict(),
            'meta': {'dataset_meta': {'classes': classes}},
        }
        torch.save(content, folder / f'{mode}.pth')
    (folder / 'other.py').write_text("model = dict(type='DINO')")
    (folder / 'images').mkdir()
    for name, size in {'a.png': (128, 96), 'b.jpg': (60, 80)}.items():
        Image.new('RGB', size, 'red').save(folder / 'images' / name)
    (folder / 'images/notes.txt').write_text('not an image')
    (folder / 'broken.png').write_bytes(b'broken')
    (folder / 'empty').mkdir()
    return folder


def explain(folder: Path, *arguments: str) -> None:
    """Run the tool; arguments that name a file of the folder become paths."""
    paths = [folder / a if (folder / a).exists() else a for a in arguments]
    run_here('tools/explain.py', *paths)


@pytest.mark.parametrize(
    ('mode', 'arguments', 'files'),
    [
        (
            'lors',
            'images/a.png --query 3 --gif',
            'a_query-3.png a_query-3.gif',
        ),
        ('dense', 'images --min-score 0', 'stages.svg stages.png'),
        ('lors', 'images --weights', 'shares.png cosines.png residuals.png'),
    ],
)
def test_files(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    arguments: str,
    files: str,
) -> None:
    command = [f'{mode}.py', f'{mode}.pth', *arguments.split()]
    explain(folder, *command, '--out', str(tmp_path))
    printed = capsys.readouterr().out.splitlines()
    for file in files.split():
        assert str(tmp_path / file) in printed
    for file in map(Path, printed[-1:]):
        assert file.stat().st_size
    if '--gif' in arguments:
        with Image.open(tmp_path / 'a_query-3.gif') as frames:
            assert frames.n_frames == 3  # stages
    if '--weights' in arguments:
        svg = (tmp_path / 'cosines.svg').read_text()
        assert 'mixing.out_proj' in svg
        assert 'mixing.channel' in svg


def test_boxes_are_in_pixels_of_the_image(folder: Path) -> None:
    from lors_det.analysis.trace import trace_image

    predictor = Predictor(folder / 'lors.py', folder / 'lors.pth', 'cpu')
    path = folder / 'images/a.png'
    found = predictor(path)[0].pred_instances
    trace = trace_image(predictor, path)
    boxes = trace.stages[-1].after[trace.queries]
    torch.testing.assert_close(boxes, found.bboxes)
    assert torch.equal(trace.scores, found.scores)
    assert torch.equal(trace.labels, found.labels)
    # At first a query is all of the image.
    whole = torch.tensor([0.0, 0, 128, 96]).expand(7, 4)
    torch.testing.assert_close(
        trace.stages[0].before, whole, rtol=0, atol=1e-3
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('lors.py lors.pth none.png', 'IMAGE: none.png does not exist'),
        (
            'lors.py lors.pth broken.png',
            'broken.png: file that is no image, or cut off',
        ),
        ('lors.py lors.pth empty', 'empty: expected an image or a folder of'),
        ('lors.py lors.pth', 'IMAGE: expected one, or --weights'),
        ('lors.py lors.pth images/a.png --query -1', '--query -1: expected'),
        (
            'lors.py lors.pth images/a.png --detection 7',
            '--detection 7: expected 0 to 6',
        ),
        ('lors.py lors.pth images --min-score 1', '--min-score 1.0: no dete'),
        ('lors.py dense.pth images/a.png', 'the checkpoint .* holds mode .de'),
        ('other.py lors.pth images/a.png', "model.type='DINO': expected 'Ada"),
    ],
)
def test_errors(folder: Path, arguments: str, message: str) -> None:
    with pytest.raises(SystemExit, match=f'error: .*{message}') as info:
        explain(folder, *arguments.split())
    assert '\n' not in str(info.value)
