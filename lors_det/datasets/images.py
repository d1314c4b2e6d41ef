# SPDX-License-Identifier: Apache-2.0
"""Image files as they are: what is wrong with them, and how to go on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get
from PIL import Image

#: No pixel of these can be had.
UNREADABLE = (
    'missing image',
    'empty image file',
    'file that is no image, or cut off',
)
OTHER_SIZE = 'image of another size than its record'
EXIF_ORIENTATION = 0x112
TINY = 2  # pixels
PLACEHOLDER = 64  # pixels


class LoadCheckedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, for files as they come.

    Where an image cannot be read, ``defect`` says what is wrong with it, and
    there is none, or a black one for who asked for it. An image whose
    record has its size before it is turned by its EXIF data is not turned:
    that is how it was annotated. All other images are what mmcv makes of
    them.

    Args:
        kwargs: See mmcv's class.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load an image.

        Args:
            results: ``img_path``; ``height`` and ``width`` of the record in
                pixels, if there is one; ``keep_unreadable``, whether a black
                image stands for one that cannot be read. Receives ``defect``.

        Returns:
            ``results`` with ``img`` (H, W, 3), ``img_shape`` and
            ``ori_shape``, both (H, W); None if there is no image.
        """
        size = (int(results.get('height', 1)), int(results.get('width', 1)))
        image, kind = self.read(results['img_path'], size)
        if kind in UNREADABLE or (kind and 'height' in results):
            results['defect'] = kind
        if image is None:
            if not results.get('keep_unreadable'):
                return None
            # Not of the record's size: that may be anything.
            image = np.zeros((PLACEHOLDER, PLACEHOLDER, 3), np.uint8)
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def read(
        self, path: str, size: tuple[int, int]
    ) -> tuple[np.ndarray[Any, Any] | None, str | None]:
        """Read a file.

        Args:
            path: The file.
            size: Height and width in pixels that its record says.

        Returns:
            (H, W, 3), or None if it cannot be read; and what is wrong, if
            something is.
        """
        try:
            content = get(path, backend_args=self.backend_args)
        except OSError:
            return None, 'missing image'
        if not content:
            return None, 'empty image file'
        image = self._decode(content, self.color_type)
        if image is None:
            return None, 'file that is no image, or cut off'
        if image.shape[:2] == size:
            return image, None
        if self.color_type == 'color' and image.shape[1::-1] == size:
            unturned = self._decode(content, 'color_ignore_orientation')
            if unturned is not None and unturned.shape[:2] == size:
                return unturned, None
        return image, OTHER_SIZE

    def _decode(
        self, content: bytes, flag: str
    ) -> np.ndarray[Any, Any] | None:
        try:
            return mmcv.imfrombytes(
                content, flag=flag, backend=self.imdecode_backend
            )
        except Exception:
            # Decoders fail in as many ways as there are wrong files.
            return None


def inspect_image(
    loader: LoadCheckedImage, path: str, size: tuple[int, int]
) -> Sequence[str]:
    """All that is noteworthy about an image file.

    Args:
        loader: What a run would read it with.
        path: The file.
        size: Height and width in pixels that its record says.

    Returns:
        Keys of ``ANSWERS``.
    """
    image, kind = loader.read(path, size)
    found = [kind] if kind else []
    if image is None:
        return found
    if min(image.shape[:2]) <= TINY:
        found.append('image of a pixel or two')
    content = get(path, backend_args=loader.backend_args)
    try:
        with Image.open(io.BytesIO(content)) as header:  # decodes no pixel
            mode, turned = header.mode, header.getexif().get(EXIF_ORIENTATION)
    except Exception:
        return found  # a format that cv2 reads and Pillow does not
    raw = loader._decode(content, 'unchanged')
    if mode.startswith('I') or (raw is not None and raw.dtype == np.uint16):
        found.append('image of 16 bits')
    if mode in ('1', 'L', 'LA', 'I', 'I;16'):
        found.append('grey image')
    if 'A' in mode:
        found.append('image with transparency')
    if mode == 'CMYK':
        found.append('image in CMYK')
    if turned not in (None, 1):
        found.append('image to be turned by its EXIF data')
    return found
