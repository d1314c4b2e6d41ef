# SPDX-License-Identifier: Apache-2.0
"""Detect with an exported model: python runtime.py MODEL.onnx IMAGE...

Needs numpy, OpenCV and onnxruntime, and nothing else of lors_det: a device
needs this file and the model.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
#: Name of the meta data in a file, and the version of their form.
META_KEY, META_FORMAT = 'lors_det', 1
INPUTS = ('images', 'sizes', 'scales')


class Detections(NamedTuple):
    """Detections of one image, by descending score."""

    boxes: Array  # (K, 4) x1, y1, x2, y2 in pixels, not clipped
    scores: Array  # (K,)
    labels: Array  # (K,) index in the model's classes


class Detector:
    """An exported ONNX model; ``ValueError`` if the file is no such model.

    Args:
        path: What ``tools/export.py --format onnx`` wrote.
        providers: As in onnxruntime, best first.
    """

    def __init__(
        self, path: str | Path, providers: Any = ('CPUExecutionProvider',)
    ) -> None:
        import onnxruntime  # late: readers of the meta data do without

        if not Path(path).is_file():
            raise ValueError(f'{path}: no such file')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads()
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, [*providers]
            )
        except Exception:  # it has a class for each
            raise ValueError(f'{path}: no ONNX model, or cut off') from None
        found = self.session.get_modelmeta().custom_metadata_map
        self.meta = read_meta(found.get(META_KEY), path)
        self.classes: list[str] = self.meta['classes']

    def __call__(self, images: list[Array]) -> list[Detections]:
        """Detect on arrays as in `prepare`; those of one size run together."""
        found = list[Detections]()
        prepared = [self.prepare(image) for image in images]
        for _, group in groupby(prepared, lambda each: each[0].shape):
            arrays = [np.stack(each) for each in zip(*group, strict=True)]
            outputs = self.run(dict(zip(INPUTS, arrays, strict=True)))
            if 'logits' in outputs:
                outputs = select(outputs, arrays[2], self.meta['max_per_img'])
            parts = [outputs[key] for key in Detections._fields]
            found += map(Detections, *parts)
        return found

    def prepare(self, image: Array) -> tuple[Array, Array, Array]:
        """Resize, normalise and pad (H, W, 3) uint8 blue, green, red.

        Returns the image (3, H, W), width and height without the padding (2,)
        and these over the original ones (2,); all are float32.
        """
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise ValueError(
                f'image: {image.dtype} {image.shape}: expected uint8 '
                '(H, W, 3), in the order blue, green, red'
            )
        how, old = self.meta['preprocessing'], image.shape[1::-1]
        new = how['scale']
        if how['keep_ratio']:
            ratio = min(max(new) / max(old), min(new) / min(old))
            new = [int(side * ratio + 0.5) for side in old]
        resized = cv2.resize(image, new)
        if how['bgr_to_rgb']:
            resized = resized[..., ::-1]
        mean, std = (np.float32(how[key]) for key in ('mean', 'std'))
        pixels = (resized.astype(np.float32) - mean) / std
        (width, height), step = new, how['pad_size_divisor']
        padding = (0, -height % step), (0, -width % step), (0, 0)
        padded = np.pad(pixels, padding, constant_values=how['pad_value'])
        sizes = np.array(new, np.float32)
        scales = sizes / np.array(old, np.float32)
        return padded.transpose(2, 0, 1), sizes, scales

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph on batches of what `prepare` returns, by `INPUTS`."""
        check_images(inputs['images'], self.meta)
        names = self.meta['outputs']
        taken = {name: inputs[name] for name in self.meta['inputs']}
        return dict(zip(names, self.session.run(names, taken), strict=True))


def num_threads() -> int:
    """Return ``OMP_NUM_THREADS``, or 0 for as many as there are cores."""
    text = os.environ.get('OMP_NUM_THREADS', '')
    first = text.split(',')[0].strip()  # the others are for nested loops
    if first and not first.isdigit():
        raise ValueError(f'OMP_NUM_THREADS={text}: expected a number')
    return int(first or 0)


def read_meta(text: str | None, path: Any) -> dict[str, Any]:
    """Read the meta data of a file; ``ValueError`` if they are of another."""
    if not text:
        raise ValueError(f'{path}: not written by tools/export.py')
    meta: dict[str, Any] = json.loads(text)
    if meta['format'] != META_FORMAT:
        raise ValueError(
            f'{path}: of another version, lors_det {meta["lors_det"]} (format '
            f'{meta["format"]}, expected {META_FORMAT}): export it again'
        )
    return meta


def check_images(images: Array, meta: dict[str, Any]) -> None:
    """Refuse a batch (B, 3, H, W) that the backbone cannot halve evenly."""
    step = meta['preprocessing']['pad_size_divisor']
    if images.shape[2] % step or images.shape[3] % step:
        raise ValueError(
            f'images {images.shape}: expected sides divisible by {step}'
        )


def select(outputs: dict[str, Array], scales: Array, k: int) -> Any:
    """Keep the best k (query, class) pairs, in pixels of the originals."""
    scores = 1 / (1 + np.exp(-outputs['logits']))
    flat = scores.reshape(len(scores), -1)
    order = (-flat).argsort(1, kind='stable')[:, :k]
    query, labels = np.divmod(order, scores.shape[-1])
    boxes = np.take_along_axis(outputs['boxes'], query[..., None], 1)
    boxes = boxes / np.tile(scales, 2)[:, None]
    best = np.take_along_axis(flat, order, 1)
    return {'boxes': boxes, 'scores': best, 'labels': labels}


def main() -> None:
    """Parse the command line and print a line for each detection."""
    parser = argparse.ArgumentParser(description='Detect on images.')
    parser.add_argument('model')
    parser.add_argument('images', nargs='+')
    parser.add_argument('--score', type=float, default=0.3)
    args = parser.parse_args()
    try:
        detector = Detector(args.model)
    except ValueError as error:
        raise SystemExit(f'error: {error}') from None
    for file in args.images:
        image = cv2.imread(file)
        if image is None:
            raise SystemExit(f'error: {file}: no image, or cut off')
        for box, score, label in zip(*detector([image])[0], strict=True):
            if score >= args.score:
                place = ' '.join(f'{side:.1f}' for side in box)
                print(f'{file} {detector.classes[label]} {score:.3f} {place}')


if __name__ == '__main__':
    main()
