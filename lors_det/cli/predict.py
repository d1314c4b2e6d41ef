# SPDX-License-Identifier: Apache-2.0
"""Behind tools/predict.py: pictures, videos, COCO's JSON and CSV."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
from mmdet.structures import DetDataSample
from tqdm import tqdm  # type: ignore[import-untyped]

from lors_det.analysis.pictures import draw_detections
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.launch import load_config
from lors_det.errors import UsageError
from lors_det.files import check_file, check_output
from lors_det.media import Frame, count_frames, find_inputs
from lors_det.predict import COLUMNS, Predictor

CODEC = 'mp4v'


def predict(args: argparse.Namespace, errors: OneLineErrors) -> None:
    """Detect on all inputs, and write the results as they come.

    Args:
        args: Parsed arguments of tools/predict.py.
        errors: Learns what the config is.

    Raises:
        UsageError: If an argument is wrong, or no input can be decoded.
    """
    if args.batch_size < 1:
        raise UsageError(f'--batch-size {args.batch_size}: expected 1 or more')
    if not 0 <= args.score <= 1:
        raise UsageError(f'--score {args.score}: expected 0 to 1')
    # FFmpeg's own messages, which name no file.
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    cv2.setLogLevel(0)
    files = find_inputs(args.inputs)
    out = Path(
        args.out or Path('work_dirs', Path(args.config).stem, 'predictions')
    )
    if not args.overwrite:
        check_output(str(out), '--out')
    check_file(args.checkpoint, 'CHECKPOINT')
    cfg = errors.cfg = load_config(args.config)
    predictor = Predictor(cfg, args.checkpoint, args.device, args.trust)
    labels = predictor.labels_of(
        args.classes.split(',') if args.classes else []
    )
    errors.how_to_resume = f'what was done is in {out}'

    done = skipped = 0

    def skip(name: str, reason: str, frames: int) -> None:
        nonlocal skipped
        if len(files) == 1 and not done:
            raise UsageError(f'{name}: {reason}')
        skipped += frames
        tqdm.write(f'skipped: {name}: {reason}')

    # A bar for people only: disable=None leaves it out of log files.
    with (
        Results(out, predictor) as results,
        tqdm(total=count_frames(files), unit=' images', disable=None) as bar,
    ):
        for frame, sample in predictor.stream(files, args.batch_size, skip):
            errors.first_batch_done = True
            results.add(frame, predictor.select(sample, args.score, labels))
            done += 1
            bar.update()
    if not done:
        raise UsageError(f'none of the {len(files)} inputs can be decoded')
    print(
        f'{done} images, {results.detections} detections, {skipped} skipped: '
        f'{out}'
    )


class Results:
    """Files of a folder, written while the frames come.

    - ``detections.json``: what COCO calls results; ``images.json``: the images
      and categories that it speaks of;
    - ``detections.csv``: the same as a table;
    - ``pictures``: a JPEG per image, an MP4 per video or camera.

    Args:
        out: The folder.
        predictor: Whose results they are.

    Attributes:
        detections: Number of detections so far.

    Raises:
        UsageError: If the folder or a video cannot be written.
    """

    def __init__(self, out: Path, predictor: Predictor) -> None:
        self.out = out
        self.predictor = predictor
        self.detections = 0
        self._image_id = 0
        self._names = set[str]()
        self._stack = ExitStack()
        self._video: cv2.VideoWriter | None = None
        self._video_of = ''

    def __enter__(self) -> Results:
        """Open the files."""
        try:
            (self.out / 'pictures').mkdir(parents=True, exist_ok=True)
            table = (self.out / 'detections.csv').open('w', newline='')
        except OSError as error:
            raise UsageError(
                f'--out {self.out}: cannot be written: {error.strerror}'
            ) from None
        self._csv = csv.DictWriter(
            self._stack.enter_context(table), ('image_id', *COLUMNS)
        )
        self._csv.writeheader()
        categories = [
            {'id': label + 1, 'name': name}
            for label, name in enumerate(self.predictor.classes)
        ]
        self._add_image = self._stack.enter_context(
            json_list(
                self.out / 'images.json',
                f'{{"categories": {json.dumps(categories)}, "images": ',
                '}',
            )
        )
        self._add_detection = self._stack.enter_context(
            json_list(self.out / 'detections.json')
        )
        return self

    def __exit__(self, *error: object) -> None:
        """Close the files; each is whole, also after an error."""
        self._stack.close()
        if self._video:
            self._video.release()

    def add(self, frame: Frame, sample: DetDataSample) -> None:
        """Write the results of a frame.

        Args:
            frame: The frame.
            sample: Its detections.
        """
        self._image_id += 1
        height, width = frame.image.shape[:2]
        image = {'id': self._image_id, 'file_name': frame.name}
        image.update(width=width, height=height)
        if frame.number is not None:
            image['frame'] = frame.number
        self._add_image(image)
        for row in self.predictor.rows(sample):
            row['score'] = round(row['score'], 5)
            corners = [round(row[key], 2) for key in ('x1', 'y1', 'x2', 'y2')]
            row.update(zip(('x1', 'y1', 'x2', 'y2'), corners, strict=True))
            self._csv.writerow({'image_id': self._image_id, **row})
            x1, y1, x2, y2 = corners
            self._add_detection(
                {
                    'image_id': self._image_id,
                    'category_id': row['label'] + 1,
                    'bbox': [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    'score': row['score'],
                }
            )
            self.detections += 1
        picture = draw_detections(
            frame.image, sample.pred_instances, self.predictor.classes
        )
        if frame.fps is None:
            path = self._new_path(frame.name, '.jpg')
            path.write_bytes(cv2.imencode('.jpg', picture)[1].tobytes())
        else:
            self._write_video(frame, picture)

    def _write_video(self, frame: Frame, picture: Any) -> None:
        """Add a picture to the video of its name."""
        if frame.number == 0 or frame.name != self._video_of:
            if self._video:
                self._video.release()
            path = self._new_path(frame.name, '.mp4')
            self._video_of = frame.name
            self._video = cv2.VideoWriter(
                str(path),
                cv2.VideoWriter.fourcc(*CODEC),
                frame.fps,
                picture.shape[1::-1],
            )
            if not self._video.isOpened():
                raise UsageError(
                    f'{path}: cannot be written: this OpenCV lacks the codec '
                    f'{CODEC}; expected one built with FFmpeg, as from pip '
                    'install opencv-python-headless'
                )
        self._video.write(picture)

    def _new_path(self, name: str, ending: str) -> Path:
        """Return the path of a picture, of a name that no other has."""
        stem = new = Path(name).stem
        number = 1
        while new + ending in self._names:
            number += 1
            new = f'{stem}_{number}'
        self._names.add(new + ending)
        return self.out / 'pictures' / (new + ending)


@contextmanager
def json_list(
    path: Path, before: str = '', after: str = ''
) -> Iterator[Callable[[Any], None]]:
    """Write a list in JSON entry by entry; it is whole after an error, too.

    Args:
        path: The file.
        before: JSON before the list.
        after: JSON after the list.

    Yields:
        What adds an entry.
    """
    with path.open('w', encoding='utf-8') as file:
        file.write(f'{before}[')
        separator = '\n'

        def add(entry: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(entry))
            separator = ',\n'

        try:
            yield add
        finally:
            file.write(f'\n]{after}\n')
