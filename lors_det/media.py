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

IMAGES = '.bmp .jpeg .jpg .pgm .png .ppm .tif .tiff .webp'.split()
VIDEOS = '.avi .m4v .mkv .mov .mp4 .mpeg .mpg .webm .wmv'.split()
#: Broken frames one after another, after which a video counts as cut off.
MAX_FAILURES = 100
#: Told what cannot be decoded, why, and how many frames that are.
Skip = Callable[[str, str, int], None]


class Frame(NamedTuple):
    """An image (H, W, 3) uint8, blue, green, red, and where it is from.

    A frame of a video or camera has a number from 0 and frames per second.
    """

    name: str
    image: np.ndarray[Any, Any]
    number: int | None = None
    fps: float = 0.0


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
        is_folder = Path(each).is_dir()
        files = [each]
        if is_folder:
            paths = sorted(Path(each).iterdir())
            files = [
                str(p) for p in paths if p.suffix.lower() in IMAGES + VIDEOS
            ]
        elif not Path(each).is_file() and not _is_camera(each):
            paths = sorted(map(Path, glob(each, recursive=True)))
            files = [str(path) for path in paths if path.is_file()]
        if not files:
            raise UsageError(
                f'INPUT {each}: '
                + ('no image or video in this folder' if is_folder else
                   'no such file; expected an image, a video, a folder, a '
                   'glob or the number of a camera')
            )  # fmt: skip
        found += files
    return found


def count_frames(files: Iterable[str]) -> int | None:
    """Return how many frames files promise to have; None with a camera.

    Args:
        files: See `find_inputs`.
    """
    files = list(files)
    if any(map(_is_camera, files)):
        return None
    return sum(_length(file) if _is_video(file) else 1 for file in files)


def read_frames(
    inputs: Iterable[Any], loader: LoadCheckedImage, skip: Skip
) -> Iterator[Frame]:
    """Yield frames; none is read before it is asked for.

    Args:
        inputs: See `find_inputs`; also PIL images, and arrays (H, W, 3) uint8
            in the order blue, green, red.
        loader: Reads image files.
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
            if each.shape[2:] != (3,) or each.dtype != np.uint8:
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
                    skip(file, str(defect), 1)
                else:
                    yield Frame(file, image)


def _read_video(file: str, skip: Skip) -> Iterator[Frame]:
    """Yield the frames of a video or camera that can be decoded."""
    is_camera = _is_camera(file)
    name = f'camera {file}' if is_camera else file
    capture = cv2.VideoCapture(int(file) if is_camera else file)
    fps = capture.get(cv2.CAP_PROP_FPS)
    fps = fps if 0 < fps <= 1000 else 25.0  # cameras may not say
    length = 0 if is_camera else _length(file)
    number = decoded = in_a_row = 0
    try:
        while in_a_row < MAX_FAILURES:
            good, image = capture.read()
            if good:
                yield Frame(name, image, number, fps)
            elif number >= length:  # not a broken frame, but the end
                break
            decoded += good
            in_a_row = 0 if good else in_a_row + 1
            number += 1
    finally:
        capture.release()
    missing = max(length - decoded, not decoded)
    if decoded and missing:
        skip(name, f'{missing} of {length} frames cannot be decoded', missing)
    elif is_camera and missing:
        skip(name, 'is not there, or in use', 1)
    elif missing:
        skip(
            name,
            'cannot be decoded: it is damaged, or OpenCV lacks its codec '
            '(ffmpeg -i VIDEO -c:v libx264 NEW.mp4 converts it)',
            1,
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
