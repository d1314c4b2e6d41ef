# SPDX-License-Identifier: Apache-2.0
"""Every kind of image file has its answer, in training and in testing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.small_coco import (
    change,
    load,
    pixels,
    spoil,
)
from PIL import Image
from torch.utils.data import DataLoader

from lors_det.datasets.coco import IMAGE_DEFECTS
from lors_det.datasets.defects import ANSWERS
from lors_det.datasets.images import (
    MISSING,
    NO_IMAGE,
    OTHER_SIZE,
    TOO_THIN,
    LoadCheckedImage,
    inspect_image,
)
from lors_det.errors import UsageError

ROOT = Path(__file__).parents[2]
EMPTY = 'empty image file'
EXIF = 'image to be turned by its EXIF data'
RGB = pixels()
GREY = RGB[..., :1].repeat(3, 2)


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


BROKEN: dict[str, tuple[bytes | None, str]] = {
    'missing': (None, MISSING),
    'zero bytes': (b'', EMPTY),
    'text': (b'<html>404 Not Found</html>', NO_IMAGE),
    'pipe': (b'pipe', NO_IMAGE),
    'half a jpeg': (encode(RGB, 'JPEG')[:-500], NO_IMAGE),
    'a jpeg but for its last byte': (encode(RGB, 'JPEG')[:-1], NO_IMAGE),
    'half a png': (encode(RGB)[:-500], NO_IMAGE),
    'a flipped bit in a png': (
        encode(RGB)[:-500] + b'x' + encode(RGB)[-499:],
        NO_IMAGE,
    ),
    'half a bmp': (encode(RGB, 'BMP')[:-500], NO_IMAGE),
    '20,000 x 10': (encode(np.zeros((10, 20_000), np.uint8)), TOO_THIN),
}
# What is expected of the pixels (red, green, blue), and what is reported.
USED: dict[str, tuple[bytes, Any, list[str]]] = {
    'rgb': (encode(RGB), RGB, []),
    'grey': (encode(RGB[..., 0]), GREY, ['grey image']),
    'transparent': (
        encode(np.dstack([RGB, RGB[..., 0]])), RGB,
        ['image with transparency'],
    ),
    'grey and transparent': (
        encode(Image.fromarray(RGB[..., :2].copy(), 'LA')), GREY,
        ['grey image', 'image with transparency'],
    ),
    'cmyk': (
        encode(Image.new('CMYK', (40, 30), (0, 255, 255, 0)), 'JPEG'),
        np.tile(np.uint8([255, 0, 0]), (30, 40, 1)),  # no cyan: red
        ['image in CMYK'],
    ),
    '16 bits, grey': (
        encode(GREY[..., 0].astype(np.uint16) * 256 + 99), GREY,
        ['image of 16 bits', 'grey image'],
    ),
    '16 bits': (
        cv2.imencode('.png', RGB[..., ::-1].astype(np.uint16) * 257)[1]
        .tobytes(), RGB,
        ['image of 16 bits'],
    ),
    'upside down': (turned(3), RGB[::-1, ::-1], [EXIF]),
    # The record has the size of the unturned image: so it was annotated.
    'on its side': (turned(6), RGB, [EXIF]),
}  # fmt: skip


def put(root: Path, data: bytes | None, number: int = 1) -> Path:
    path = root / 'images' / f'{number}.png'
    path.unlink()
    if data == b'pipe':
        os.mkfifo(path)
    elif data is not None:
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
    assert not dataset.image_defects()


@pytest.mark.parametrize(
    ('data', 'record', 'shape', 'kinds'),
    [
        (turned(6), (40, 30), (40, 30), [EXIF]),  # annotated as it is shown
        (encode(RGB[:20]), (30, 40), (20, 40), [OTHER_SIZE]),
        (encode(RGB[:1, :1]), (1, 1), (1, 1), ['image of a pixel or two']),
        # A record of a huge image costs no memory.
        (None, (10**9, 10**9), (64, 64), [MISSING]),
        # Resized to a longer side of 64 pixels, and a shorter one of 1.
        (encode(RGB[0].repeat(4, 0)[None, :100]), (1, 100), (1, 100),
         ['image of a pixel or two']),
        (encode(RGB[0].repeat(4, 0)[None, :101]), (1, 101), (64, 64),
         [TOO_THIN]),
    ],
)  # fmt: skip
def test_sizes(
    data: bytes | None,
    record: tuple[int, int],
    shape: tuple[int, int],
    kinds: list[str],
    root: Path,
) -> None:
    path = put(root, data)
    spoil(root, change('images', 0, height=record[0], width=record[1]))
    dataset = load(root, test_mode=True)
    assert dataset[0]['data_samples'].ori_shape == shape
    loader = dataset.pipeline.transforms[0]
    assert inspect_image(loader, str(path), record) == kinds
    counted = {kind: [1] for kind in kinds if kind in IMAGE_DEFECTS}
    assert dataset.image_defects() == counted


@pytest.mark.parametrize('name', BROKEN)
def test_broken(name: str, root: Path) -> None:
    data, kind = BROKEN[name]
    path = put(root, data, 2)
    dataset = load(root)
    loader = dataset.pipeline.transforms[0]
    assert inspect_image(loader, str(path), (30, 40)) == [kind]
    np.random.seed(0)
    for _ in range(3):
        assert dataset[1]['data_samples'].img_id in (1, 3, 4)
    # Counted once, however often it is met.
    assert dataset.image_defects() == {kind: [2]}
    tested = load(root, test_mode=True)
    sample = tested[1]['data_samples']
    assert (sample.img_id, sample.unreadable) == (2, kind)
    assert 'unreadable' not in tested[0]['data_samples']
    assert tested.image_defects() == {kind: [2]}


@pytest.mark.parametrize('name', ['x' * 300 + '.png', '\ud800.png'])
def test_names_that_no_file_can_have(name: str, root: Path) -> None:
    named = change('images', 1, file_name=name)
    spoil(root, named)
    dataset = load(root, test_mode=True)
    assert dataset[1]['data_samples'].unreadable == MISSING
    assert dataset.image_defects() == {MISSING: [2]}
    spoil(root, named, lambda c: c.update(images=c['images'][1:2]))
    with pytest.raises(UsageError, match='none of 1 images') as info:
        load(root)
    assert str(info.value).isascii()


def test_workers_tell_the_main_process(root: Path) -> None:
    put(root, None)
    put(root, b'', 3)
    dataset = load(root, test_mode=True)
    loader = DataLoader(dataset, num_workers=2, collate_fn=list)
    assert len(list(loader)) == 4
    assert dataset.image_defects() == {MISSING: [1], EMPTY: [3]}
