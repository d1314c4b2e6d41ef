# SPDX-License-Identifier: Apache-2.0
"""Images, folders, globs, videos and cameras as one stream of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from lors_det.datasets.images import LoadCheckedImage
from lors_det.errors import UsageError

IMAGES = {
    '.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp',
}  # fmt: skip
VIDEOS = {
    '.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv',
}  # fmt: skip
#: Told what is left out, why, and how many frames that are.
Skip = Callable[[str, str, int], None]


class Frame(NamedTuple):
    """An image, or a frame of a video or camera.

    Attributes:
        name: The file; ``camera N``, or ``image`` where there is no file.
        image: (H, W, 3) uint8, in the order blue, green, red.
        number: In its video, from 0; None for an image.
        fps: Frames per second of its video; None for an image.
    """

    name: str
    image: np.ndarray[Any, Any]
    number: int | None = None
    fps: float | None = None


def find_inputs(inputs: Iterable[str]) -> list[str]:
    """Return the files and cameras that inputs stand for.

    Args:
        inputs: Files, folders (of which all images and videos are taken, in
            alphabetic order), globs, numbers of cameras.

    Raises:
        UsageError: If an input is not there, or holds nothing.
    """
    found = list[str]()
    for each in inputs:
        path = Path(each)
        if path.is_file() or _is_camera(each):
            files = [each]
        elif path.is_dir():
            files = sorted(
                str(file)
                for file in path.iterdir()
                if file.suffix.lower() in IMAGES | VIDEOS
            )
            if not files:
                raise UsageError(
                    f'INPUT {each}: the folder has no image and no video; '
                    f'{each}/**/*.jpg takes those of its subfolders'
                )
        else:
            files = sorted(
                file
                for file in glob(each, recursive=True)
                if Path(file).is_file()
            )
            if not files:
                raise UsageError(
                    f'INPUT {each}: no such file; expected an image, a video, '
                    'a folder, a glob or the number of a camera'
                )
        found += files
    return found


def count_frames(files: Iterable[str]) -> int | None:
    """Return the number of frames as the files' heads say; None if endless.

    Args:
        files: See `find_inputs`.
    """
    total = 0
    for each in files:
        if _is_camera(each):
            return None
        total += _length(each) if _is_video(each) else 1
    return total


def read_frames(
    inputs: Iterable[Any], loader: LoadCheckedImage, skip: Skip
) -> Iterator[Frame]:
    """Yield frames; none is read before it is asked for.

    Args:
        inputs: See `find_inputs`; also paths, numbers of cameras, PIL images,
            and arrays (H, W, 3) uint8 in the order blue, green, red.
        loader: What reads image files.
        skip: Told what cannot be decoded.

    Raises:
        UsageError: See `find_inputs`.
        ValueError: If an array has another shape or type.
    """
    for each in inputs:
        if isinstance(each, Image.Image):
            turned = ImageOps.exif_transpose(each).convert('RGB')
            yield Frame('image', np.asarray(turned)[..., ::-1].copy())
        elif isinstance(each, np.ndarray):
            if each.ndim != 3 or each.shape[2] != 3 or each.dtype != np.uint8:
                raise ValueError(
                    f'image: {each.dtype} {each.shape}: expected uint8 '
                    '(H, W, 3), in the order blue, green, red'
                )
            yield Frame('image', each)
        else:
            for file in find_inputs([str(each)]):
                if _is_video(file) or _is_camera(file):
                    yield from _read_video(file, skip)
                    continue
                image, defect = loader.read(file, (1, 1))
                if image is None:
                    skip(file, defect or 'no image', 1)
                else:
                    yield Frame(file, image)


def _read_video(file: str, skip: Skip) -> Iterator[Frame]:
    """Yield the frames of a video or camera."""
    camera = _is_camera(file)
    name = f'camera {file}' if camera else file
    capture = cv2.VideoCapture(int(file) if camera else file)
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 0 < fps <= 1000 else 25.0  # cameras and streams may not say
    number = decoded = 0
    try:
        while capture.grab():
            good, image = capture.retrieve()
            if good:
                yield Frame(name, image, number, fps)
            decoded += good
            number += 1
    finally:
        capture.release()
    if not decoded:
        skip(
            name,
            'this camera is not there, or in use'
            if camera
            else 'cannot be decoded: it is damaged, or OpenCV lacks its codec '
            '(ffmpeg -i VIDEO -c:v libx264 NEW.mp4 converts it)',
            1,
        )
    elif not camera and _length(file) > decoded:
        length = _length(file)
        skip(
            name,
            f'{decoded} of the {length} frames that it should have can be '
            'decoded',
            length - decoded,
        )


def _length(file: str) -> int:
    """Return the number of frames that the head of a video says."""
    capture = cv2.VideoCapture(file)
    length = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    return max(1, int(length))


def _is_camera(name: str) -> bool:
    return name.isdecimal() and not Path(name).exists()


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in VIDEOS
