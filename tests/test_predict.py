# SPDX-License-Identifier: Apache-2.0
"""Detections on images and videos: lors_det/predict.py, tools/predict.py."""

from __future__ import annotations

import re
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_lines import ROOT, run_here
from helpers.factories import build
from mmdet.apis import inference_detector, init_detector
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO

from lors_det.analysis.pictures import COLORS, draw_detections
from lors_det.cli import predict as command
from lors_det.errors import UsageError
from lors_det.predict import Predictor

CONFIG = ROOT / 'tests/helpers/soak_config.py'
CORNERS = ['x1', 'y1', 'x2', 'y2']
IMAGES = sorted((ROOT / 'demo/bccd/images').glob('*.jpg'))[:3]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, none of them zero; the classes are the config's."""
    torch.manual_seed(0)
    model = build(Config.fromfile(CONFIG).model)
    for parameter in model.decoder.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    path = tmp_path_factory.mktemp('weights') / 'checkpoint.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture(scope='module')
def predictor(checkpoint: Path) -> Predictor:
    return Predictor(CONFIG, checkpoint, 'cpu')


@pytest.fixture(scope='module')
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a video of 12 frames; in a second one, frame 4 is void."""
    folder = tmp_path_factory.mktemp('videos')
    path = folder / 'whole.avi'
    fourcc = cv2.VideoWriter.fourcc(*'MJPG')
    video = cv2.VideoWriter(str(path), fourcc, 10, (64, 48))
    noise = np.random.default_rng(0)
    for _ in range(12):
        small = noise.integers(0, 255, (6, 8, 3), np.uint8)
        video.write(cv2.resize(small, (64, 48)))
    video.release()
    content = path.read_bytes()
    start = [m.end() for m in re.finditer(b'00dc', content)][5] + 4
    size = int.from_bytes(content[start - 4 : start], 'little')
    broken = content[:start] + bytes(size) + content[start + size :]
    (folder / 'broken.avi').write_bytes(broken)
    return folder


def arrays(sample: Any) -> list[np.ndarray]:
    found = sample.pred_instances.numpy()
    return [found.bboxes, found.scores, found.labels]


def test_equal_to_mmdet(checkpoint: Path, predictor: Predictor) -> None:
    """To the bit, for files, arrays and PIL images."""
    with pytest.warns(UserWarning, match='use COCO classes by default'):
        model = init_detector(str(CONFIG), str(checkpoint), device='cpu')
    files = [str(path) for path in IMAGES[:2]]
    wanted = inference_detector(model, files)
    pixels = [cv2.imread(file) for file in files]
    opened = [Image.fromarray(each[..., ::-1]) for each in pixels]
    for inputs in (files, pixels, opened):
        for sample, other in zip(predictor(inputs), wanted, strict=True):
            assert len(sample.pred_instances) == 8
            for ours, theirs in zip(
                arrays(sample), arrays(other), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)


class Double(Predictor):
    """In float64, where differences of rounding stay small."""

    def run(self, batch: dict[str, Any]) -> list[Any]:
        model = self.model.double()
        data = model.data_preprocessor(batch)
        with torch.no_grad():
            return model(
                data['inputs'].double(), data['data_samples'], mode='predict'
            )


def test_batch_equals_one_by_one(checkpoint: Path) -> None:
    """Also with an image of another size between: none is padded for it."""
    predictor = Double(CONFIG, checkpoint, 'cpu')
    inputs = [cv2.imread(str(path)) for path in IMAGES]
    inputs.insert(1, inputs[0][:, :400])
    alone = predictor(inputs)
    together = predictor(inputs, batch_size=4)
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(arrays(ours), arrays(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)


def test_a_batch_is_all_that_is_held(predictor: Predictor) -> None:
    """Counted whenever a frame is asked for; one is with the caller."""
    held, counts = weakref.WeakValueDictionary[int, np.ndarray](), []

    def source() -> Iterator[np.ndarray]:
        for number in range(10):
            counts.append(len(held))
            image = np.full((48, 64, 3), number, np.uint8)
            held[number] = image
            yield image
            del image

    for frame, _ in predictor.stream(source(), batch_size=3):
        assert frame.image.shape == (48, 64, 3)
    assert len(counts) == 10
    assert max(counts) <= 3


def test_frames_keep_their_numbers(predictor: Predictor, videos: Path) -> None:
    skipped = []
    frames = predictor.stream(
        [videos, IMAGES[0]], 4, lambda *what: skipped.append(what)
    )
    found = [(Path(frame.name).name, frame.number) for frame, _ in frames]
    name = 'broken.avi', 'whole.avi'
    assert found == [
        *((name[0], number) for number in range(12) if number != 4),
        *((name[1], number) for number in range(12)),
        (IMAGES[0].name, None),
    ]
    ((path, reason, count),) = skipped
    assert (Path(path).name, count) == (name[0], 1)
    assert reason == '1 of 12 frames cannot be decoded'


def test_an_array_that_is_no_image(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r'float64 \(4, 4\): expected uint8'):
        predictor(np.zeros((4, 4)))


def test_tables(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds have the numbers of the samples."""
    supervision = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, 'supervision', supervision)
    samples = predictor(IMAGES[:1])
    table = predictor.to_table(samples)
    detections = predictor.to_supervision(samples[0])
    assert [*table] == ['file', 'frame', 'class', 'score', *CORNERS]
    assert len(table) == 8
    np.testing.assert_array_equal(table.score, detections.confidence)
    np.testing.assert_array_equal(table[CORNERS], detections.xyxy)
    classes = [predictor.classes[i] for i in detections.class_id]
    assert [*table['class']] == [*detections.data['class_name']] == classes
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UsageError, match='pip install supervision'):
        predictor.to_supervision(samples[0])


def test_picture() -> None:
    """Boxes in the colour of their class; scores that cover no other."""
    image = np.full((300, 400, 3), 128, np.uint8)
    boxes = torch.tensor([[-50.0, 100.0, 90.0, 200.0], [200, 100, 390, 290]])
    found = InstanceData(
        bboxes=boxes.repeat(15, 1),
        scores=torch.linspace(0.9, 0.1, 30),
        labels=torch.tensor([0, 1]).repeat(15),
    )
    drawn = draw_detections(image, found, ['a', 'b'])
    assert drawn.shape[1] == 400
    assert drawn.shape[0] > 300
    for (y, x), color in (((150, 90), 0), ((290, 300), 1), ((150, 0), 0)):
        wanted = bytes.fromhex(COLORS[color][1:])[::-1]
        assert tuple(drawn[y, x]) == tuple(wanted)
    # Of 15 equal boxes, four corners have a score at most.
    changed = (drawn[:300] != image).any(-1).mean()
    assert changed < 0.08


def predict(*arguments: object, **options: object) -> None:
    named = (f'--{key.replace("_", "-")}={v}' for key, v in options.items())
    run_here('tools/predict.py', *map(str, arguments), *named)


def test_command(
    checkpoint: Path, predictor: Predictor, videos: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Images, one of them broken, and a video: all results agree."""
    bad = tmp_path / 'bad.jpg'
    bad.write_bytes(IMAGES[0].read_bytes()[:500])
    out = tmp_path / 'out'
    found = predictor.to_table(predictor(IMAGES[0]))['class']
    assert found.nunique() > 1
    predict(
        CONFIG, checkpoint, IMAGES[0], bad, IMAGES[0], videos / 'whole.avi',
        score=0, classes=found[0], batch_size=5, out=out, dtype='bfloat16',
    )  # fmt: skip
    output = capsys.readouterr().out.splitlines()
    assert f'skipped: {bad}: file that is no image, or cut off' in output
    table = pd.read_csv(out / 'detections.csv')
    assert output[-1] == (
        f'14 images, {len(table)} detections, 1 skipped: see {out}'
    )
    assert {*table['class']} == {found[0]}
    coco = COCO(out / 'images.json')
    results = coco.loadRes(str(out / 'detections.json'))
    entries = pd.DataFrame(results.loadAnns(results.getAnnIds()))
    boxes = np.stack(entries.bbox)
    boxes[:, 2:] += boxes[:, :2]
    np.testing.assert_allclose(boxes, table[CORNERS], atol=1e-3)
    for key in ('image_id', 'score'):
        np.testing.assert_array_equal(entries[key], table[key])
    images = [coco.imgs[each] for each in entries.image_id]
    assert [each['file_name'] for each in images] == [*table.file]
    frames = table.frame.fillna(-1)
    assert [each.get('frame', -1) for each in images] == [*frames]
    names = [coco.cats[each]['name'] for each in entries.category_id]
    assert names == [*table['class']]
    assert sorted(path.name for path in (out / 'pictures').iterdir()) == [
        f'000001_{IMAGES[0].stem}.jpg',
        f'000002_{IMAGES[0].stem}.jpg',
        '000003_whole.mp4',
    ]
    video = cv2.VideoCapture(str(out / 'pictures/000003_whole.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    assert video.get(cv2.CAP_PROP_FPS) == 10


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('input', 'no.jpg', 'INPUT no.jpg: no such file; expected an image'),
        ('input', 'no/*.jpg', 'INPUT no/*.jpg: no such file; expected an'),
        ('input', '{tmp}/empty', 'empty: no image or video in this folder'),
        ('input', '{tmp}/bad.mp4', 'bad.mp4: cannot be decoded: it is damag'),
        ('input', '9999', 'camera 9999: is not there, or in use'),
        ('config', 'configs/demo/lors-adamixer_r18_coco-tiny.py',
         'checkpoint.pth: decoder.stacks.mixing_kernels: the checkpoint'),
        ('classes', 'car,persn', '--classes persn: the model does not know '
         "this class; did you mean 'person'?"),
        ('device', 'cuda:99', "--device cuda:99: is not there; expected one"),
        ('out', '{tmp}/full', 'full: is there already; name another, or add'),
        ('out', '{tmp}/bad.mp4/x', 'bad.mp4/x: Not a directory'),
        ('batch_size', '0', '--batch-size 0: expected 1 or more'),
        ('score', '30', '--score 30.0: expected 0 to 1'),
        ('codec', 'zzzz', 'lacks the codec zzzz'),
    ],
)  # fmt: skip
def test_bad_input(
    key: str, value: str, message: str, checkpoint: Path, videos: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One line, and nothing else."""
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'full/pictures').mkdir(parents=True)
    (tmp_path / 'bad.mp4').write_bytes(b'no video')
    options = {'out': tmp_path / 'out', key: value.format(tmp=tmp_path)}
    config = options.pop('config', CONFIG)
    source = options.pop('input', videos / 'whole.avi')
    monkeypatch.setattr(command, 'CODEC', options.pop('codec', 'mp4v'))
    with pytest.raises(SystemExit) as error:
        predict(config, checkpoint, source, **options)
    assert message in str(error.value)
    assert str(error.value).count('\n') == 0
    captured = capfd.readouterr()
    assert captured.out == ''
