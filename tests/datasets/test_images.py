# SPDX-License-Identifier: Apache-2.0
"""Every kind of image file has its answer, in training and in testing."""

from __future__ import annotations

import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers.small_coco import content, load, pixels, write_annotations
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from lors_det.datasets.findings import ANSWERS
from lors_det.datasets.images import LoadCheckedImage, inspect_image

ROOT = Path(__file__).parents[2]
MISSING, EMPTY, NO_IMAGE = (
    'missing image',
    'empty image file',
    'file that is no image, or cut off',
)
EXIF = 'image to be turned by its EXIF data'
RGB = pixels()


def encode(image: Any, kind: str = 'PNG', **options: Any) -> bytes:
    buffer = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(RGB, 'PNG', exif=exif)


def grey16() -> np.ndarray:
    return RGB[..., 0].astype(np.uint16) * 256 + 99


BROKEN: dict[str, tuple[bytes | None, str]] = {
    'missing': (None, MISSING),
    'zero bytes': (b'', EMPTY),
    'text': (b'<html>404 Not Found</html>', NO_IMAGE),
    'half a jpeg': (encode(RGB, 'JPEG')[:-500], NO_IMAGE),
    'a jpeg but for its last byte': (encode(RGB, 'JPEG')[:-1], NO_IMAGE),
    'half a png': (encode(RGB)[:-500], NO_IMAGE),
    'a flipped bit in a png': (
        encode(RGB)[:-500] + b'x' + encode(RGB)[-499:],
        NO_IMAGE,
    ),
    'half a bmp': (encode(RGB, 'BMP')[:-500], NO_IMAGE),
}
# What is expected of the pixels (red, green, blue), and what is reported.
USED: dict[str, tuple[bytes, Any, list[str]]] = {
    'rgb': (encode(RGB), RGB, []),
    'grey': (
        encode(RGB[..., 0]),
        RGB[..., :1].repeat(3, 2),
        ['grey image'],
    ),
    'transparent': (
        encode(np.dstack([RGB, RGB[..., 0]])),
        RGB,
        ['image with transparency'],
    ),
    'grey and transparent': (
        encode(Image.fromarray(RGB[..., :2].copy(), 'LA')),
        RGB[..., :1].repeat(3, 2),
        ['grey image', 'image with transparency'],
    ),
    'cmyk': (
        encode(Image.new('CMYK', (40, 30), (0, 255, 255, 0)), 'JPEG'),
        np.tile(np.uint8([255, 0, 0]), (30, 40, 1)),  # no cyan: red
        ['image in CMYK'],
    ),
    '16 bits, grey': (
        encode(grey16()),
        RGB[..., :1].repeat(3, 2),
        ['image of 16 bits', 'grey image'],
    ),
    '16 bits': (
        cv2.imencode('.png', RGB[..., ::-1].astype(np.uint16) * 257)[1]
        .tobytes(),
        RGB,
        ['image of 16 bits'],
    ),
    'upside down': (turned(3), RGB[::-1, ::-1], [EXIF]),
    # The record has the size of the unturned image: so it was annotated.
    'on its side': (turned(6), RGB, [EXIF]),
}  # fmt: skip


def put(root: Path, data: bytes | None, number: int = 1) -> Path:
    path = root / 'images' / f'{number}.png'
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return path


@pytest.mark.parametrize('name', USED)
def test_used(name: str, root: Path) -> None:
    data, expected, kinds = USED[name]
    path = put(root, data)
    image, defect = LoadCheckedImage().read(str(path), (30, 40))
    assert defect is None
    assert image is not None
    difference = image[..., ::-1].astype(int) - expected
    assert abs(difference).max() <= (2 if name == 'cmyk' else 0)
    assert inspect_image(LoadCheckedImage(), str(path), (30, 40)) == kinds
    assert set(kinds) <= ANSWERS.keys()
    dataset = load(root)
    assert dataset[0]['data_samples'].ori_shape == (30, 40)
    assert not dataset.image_findings()


def test_turned_if_its_record_is(root: Path) -> None:
    put(root, turned(6))
    annotations = content()
    annotations['images'][0].update(width=30, height=40)
    write_annotations(root, annotations)
    dataset = load(root)
    assert dataset[0]['data_samples'].ori_shape == (40, 30)
    assert not dataset.image_findings()


def test_of_another_size_than_its_record(root: Path) -> None:
    kind = 'image of another size than its record'
    put(root, encode(RGB[:20]))
    dataset = load(root)
    assert dataset[0]['data_samples'].ori_shape == (20, 40)
    assert str(dataset.image_findings()[kind]) == '1 (1)'


def test_of_one_pixel(root: Path) -> None:
    path = put(root, encode(RGB[:1, :1]))
    annotations = content()
    annotations['images'][0].update(width=1, height=1)
    write_annotations(root, annotations)
    assert len(load(root)) == 3  # min_size
    data = load(root, test_mode=True)[0]
    assert data['inputs'].shape == (3, 64, 64)
    kinds = inspect_image(LoadCheckedImage(), str(path), (1, 1))
    assert kinds == ['image of a pixel or two']


@pytest.mark.parametrize('name', BROKEN)
def test_broken(name: str, root: Path) -> None:
    data, kind = BROKEN[name]
    path = put(root, data, 2)
    assert inspect_image(LoadCheckedImage(), str(path), (30, 40)) == [kind]
    dataset = load(root)
    np.random.seed(0)
    for _ in range(3):
        assert dataset[1]['data_samples'].img_id in (1, 3, 4)
    # Counted once, however often it is met.
    assert {k: str(v) for k, v in dataset.image_findings().items()} == {
        kind: '1 (2)'
    }
    tested = load(root, test_mode=True)
    sample = tested[1]['data_samples']
    assert (sample.img_id, sample.unreadable) == (2, kind)
    assert 'unreadable' not in tested[0]['data_samples']
    assert str(tested.image_findings()[kind]) == '1 (2)'


def test_a_record_of_a_huge_image_costs_no_memory(root: Path) -> None:
    put(root, None)
    annotations = content()
    annotations['images'][0].update(width=10**9, height=10**9)
    write_annotations(root, annotations)
    data = load(root, test_mode=True)[0]
    assert data['inputs'].shape == (3, 64, 64)


def test_workers_tell_the_main_process(root: Path) -> None:
    put(root, None)
    put(root, b'', 3)
    dataset = load(root, test_mode=True)
    loader = DataLoader(dataset, num_workers=2, collate_fn=list)
    assert len(list(loader)) == 4
    found = {k: v.examples for k, v in dataset.image_findings().items()}
    assert found == {MISSING: ['1'], EMPTY: ['3']}


@pytest.fixture(scope='module')
def run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Runner, list[logging.LogRecord]]:
    """A run of two epochs on images of which two are broken."""
    root = tmp_path_factory.mktemp('run')
    (root / 'images').mkdir()
    source = ROOT / 'demo/coco_tiny'
    annotations = json.loads(
        (source / 'annotations/instances_train.json').read_text()
    )
    annotations['images'] = annotations['images'][:6]
    for number, image in enumerate(annotations['images']):
        data = (source / 'images' / image['file_name']).read_bytes()
        if number:  # the first is missing
            path = root / 'images' / image['file_name']
            path.write_bytes(data[:1000] if number == 2 else data)
    ids = {image['id'] for image in annotations['images']}
    annotations['annotations'] = [
        a for a in annotations['annotations'] if a['image_id'] in ids
    ]
    write_annotations(root, annotations)

    cfg = Config.fromfile(ROOT / 'configs/demo/lors-adamixer_r18_coco-tiny.py')
    dataset = {
        'type': 'lors_det.datasets.coco.CheckedCocoDataset',
        'data_root': str(root),
        'ann_file': 'ann.json',
    }
    evaluator = {
        'type': 'lors_det.datasets.coco.CheckedCocoMetric',
        'ann_file': str(root / 'ann.json'),
    }
    loader = {'num_workers': 0, 'persistent_workers': False}
    cfg.merge_from_dict(
        {
            'model.num_queries': 8,
            'model.decoder.num_stages': 1,
            'model.backbone.base_channels': 8,
            'model.backbone.stem_channels': 8,
            'model.neck.in_channels': [8, 16, 32, 64],
            'model.neck.out_channels': 32,
            'model.decoder.embed_dims': 32,
            'train_dataloader': {
                **loader,
                'batch_size': 3,
                'dataset': dataset,
                'sampler': {'type': 'DefaultSampler'},
            },
            'val_dataloader': {**loader, 'dataset': dataset},
            'val_evaluator': evaluator,
            'test_dataloader': None,
            'test_cfg': None,
            'test_evaluator': None,
            'custom_hooks': [
                {'type': 'lors_det.hooks.data_defects.DefectsHook'},
                {'type': 'lors_det.hooks.non_finite.NonFiniteHook'},
            ],
            'work_dir': str(root / 'work'),
            'log_processor': {'by_epoch': True},
        }
    )
    cfg.train_cfg = {'by_epoch': True, 'max_epochs': 2, 'val_interval': 1}
    cfg.param_scheduler = None
    cfg.default_hooks = {
        'checkpoint': {'type': 'CheckpointHook', 'interval': -1}
    }
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    runner = Runner.from_cfg(cfg)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        runner.train()
    finally:
        logger.removeHandler(handler)
    return runner, records


@pytest.mark.slow
def test_a_run_goes_on(run: tuple[Runner, list[logging.LogRecord]]) -> None:
    runner, records = run
    assert runner.epoch == 2
    for parameter in runner.model.parameters():
        assert torch.isfinite(parameter).all()
    assert not runner.train_dataloader.dataset.findings
    assert 'train/skipped_steps' not in runner.message_hub.log_scalars
    messages = [r.getMessage() for r in records]
    messages = [m for m in messages if 'ann.json' in m]
    # Twice two epochs, and one line for each kind and data set: training and
    # validation read the same file, and what is known is not said again.
    assert len(messages) == 2
    first, third = (
        runner.val_dataloader.dataset.get_data_info(i)['img_id']
        for i in (0, 2)
    )
    for kind, number in ((MISSING, first), (NO_IMAGE, third)):
        line = f'ann.json: {kind}, {ANSWERS[kind]}: 1 ({number})'
        assert sum(m.endswith(line) for m in messages) == 1


@pytest.mark.slow
def test_broken_images_count_as_images_without_detections(
    run: tuple[Runner, list[logging.LogRecord]],
) -> None:
    metric = run[0].val_evaluator.metrics[0]
    dataset = run[0].val_dataloader.dataset
    assert len(metric.img_ids) == 6
    sample = {
        'img_id': dataset.get_data_info(0)['img_id'],
        'ori_shape': (64, 64),
        'unreadable': MISSING,
        'pred_instances': {
            'bboxes': torch.rand(8, 4),
            'scores': torch.rand(8),
            'labels': torch.zeros(8, dtype=torch.long),
        },
    }
    readable = {k: copy.deepcopy(v) for k, v in sample.items()}
    del readable['unreadable']
    metric.process({}, [sample, readable])
    (_, dropped), (_, kept) = metric.results
    metric.results.clear()
    assert dropped['bboxes'].shape == (0, 4)
    assert len(sample['pred_instances']['scores']) == 0
    assert len(kept['labels']) == 8
