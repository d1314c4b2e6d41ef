# SPDX-License-Identifier: Apache-2.0
"""Load image files, and say what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import get

MISSING = 'missing image'
NO_IMAGE = 'file that is no image, or cut off'
TOO_THIN = 'image too thin to be resized'
#: No pixel of these can be used.
UNUSABLE = (MISSING, 'empty image file', NO_IMAGE, TOO_THIN)
OTHER_SIZE = 'image of another size than its record'
#: The longer side over the shorter one, of which `Resize` leaves a pixel.
MAX_RATIO = 100
PLACEHOLDER = 64  # pixels


class LoadCheckedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile`` that says what is wrong with a file.

    Where an image cannot be used, ``defect`` says why, and there is no image,
    or a black one if ``keep_unusable`` is set. An image whose record has its
    size before it is turned by its EXIF data is not turned: that is how it
    was annotated. All other images are those of mmcv.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load an image.

        Args:
            results: ``img_path``; ``height`` and ``width`` of the record in
                pixels, if there is one; ``keep_unusable``: use a black image
                instead of one that cannot be used. Receives ``defect``.

        Returns:
            ``results`` with ``img`` (H, W, 3), ``img_shape`` and
            ``ori_shape``, both (H, W); None if there is no image.
        """
        size = (int(results.get('height', 1)), int(results.get('width', 1)))
        image, kind = self.read(results['img_path'], size)
        if kind in UNUSABLE or (kind and 'height' in results):
            results['defect'] = kind
        if image is None:
            if not results.get('keep_unusable'):
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
            The image (H, W, 3), None if it cannot be used; and its defect,
            None if it has none.
        """
        if self.backend_args is None and '://' not in path:
            if not os.path.exists(path):  # or no file can have this name
                return None, MISSING
            if not os.path.isfile(path):  # opening a pipe would block
                return None, NO_IMAGE
        try:
            content = get(path, backend_args=self.backend_args)
        except OSError:
            return None, MISSING
        if not content:
            return None, 'empty image file'
        image = self.decode(content, self.color_type)
        if image is None:
            return None, NO_IMAGE
        if max(image.shape[:2]) > MAX_RATIO * min(image.shape[:2]):
            return None, TOO_THIN
        if image.shape[:2] == size:
            return image, None
        if self.color_type == 'color' and image.shape[1::-1] == size:
            unturned = self.decode(content, 'color_ignore_orientation')
            if unturned is not None and unturned.shape[:2] == size:
                return unturned, None
        return image, OTHER_SIZE

    def decode(self, content: bytes, flag: str) -> np.ndarray[Any, Any] | None:
        """Decode an image file.

        Args:
            content: The bytes of the file.
            flag: See ``mmcv.imfrombytes``.

        Returns:
            The pixels; None if they cannot be decoded.
        """
        try:
            return mmcv.imfrombytes(
                content, flag=flag, backend=self.imdecode_backend
            )
        except Exception:  # each decoder has its own
            return None


def checked_pipeline(pipeline: Iterable[Any]) -> list[Any]:
    """Return a pipeline that loads its images by `LoadCheckedImage`.

    Only the pipeline that is built is changed: the config keeps mmcv's name,
    by which mmdet's own tools look for it.

    Args:
        pipeline: Configs of transforms, or transforms.
    """
    return [
        {**each, 'type': LoadCheckedImage}
        if isinstance(each, Mapping) and each['type'] == 'LoadImageFromFile'
        else each
        for each in pipeline
    ]
