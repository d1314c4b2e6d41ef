# SPDX-License-Identifier: Apache-2.0
"""Behind tools/predict.py: pictures, videos, COCO's JSON and CSV."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import torch
from mmdet.structures import DetDataSample
from tqdm import tqdm

from lors_det.analysis.pictures import draw_detections
from lors_det.cli.boundary import OneLineErrors, suggest
from lors_det.errors import UsageError
from lors_det.files import check_file, check_output, load_config
from lors_det.media import Frame, count_frames, find_inputs
from lors_det.predict import Predictor

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
    # Silence OpenCV and FFmpeg, whose messages name no file.
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    cv2.setLogLevel(0)
    files = find_inputs(args.inputs)
    default = Path('work_dirs', Path(args.config).stem, 'predictions')
    out = Path(args.out or default)
    if not args.overwrite:
        check_output(str(out), '--out')
    check_file(args.checkpoint, 'CHECKPOINT')
    cfg = errors.cfg = load_config(args.config)
    predictor = Predictor(
        cfg, args.checkpoint, args.device, args.trust, args.dtype
    )
    labels = _labels(args.classes, predictor.classes)
    errors.how_to_resume = f'what is done is in {out}'
    done = detections = skipped = 0

    def skip(name: str, reason: str, frames: int) -> None:
        nonlocal skipped
        if len(files) == 1 and not done:
            raise UsageError(f'{name}: {reason}')
        skipped += frames
        tqdm.write(f'skipped: {name}: {reason}')

    total = count_frames(files)
    with (
        _Results(out, predictor) as results,
        tqdm(total=total, unit='image', disable=None) as bar,  # not in logs
    ):
        for frame, sample in predictor.stream(files, args.batch_size, skip):
            errors.first_batch_done = True
            found = sample.pred_instances
            keep = torch.isin(found.labels, labels)
            keep &= found.scores >= args.score
            sample.pred_instances = found[keep]
            results.add(frame, sample)
            done += 1
            detections += int(keep.sum())
            bar.update()
    if not done:
        raise UsageError(f'none of the {len(files)} inputs can be decoded')
    print(
        f'{done} images, {detections} detections, {skipped} skipped: see {out}'
    )


def _labels(names: str | None, classes: list[str]) -> torch.Tensor:
    """Return the labels of the classes that are kept."""
    kept = names.split(',') if names else classes
    for name in kept:
        if name not in classes:
            raise UsageError(
                f'--classes {name}: the model does not know this class'
                f'{suggest(name, classes)}'
            )
    return torch.tensor([classes.index(name) for name in kept])


class _Results(ExitStack):
    """Files of a folder, which grow with each frame and are whole at its end.

    ``detections.json`` has COCO's results and ``images.json`` what they are
    about; ``detections.csv``; ``pictures`` has a JPEG per image, and an MP4
    per video or camera.
    """

    def __init__(self, out: Path, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor
        self.pictures = out / 'pictures'
        self.image_id = 0
        self.video, self.video_of = cv2.VideoWriter(), ''
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
            table = (out / 'detections.csv').open('w', newline='')
        except OSError as error:
            raise UsageError(f'--out {out}: {error.strerror}') from None
        self.csv = self.enter_context(table)
        names = enumerate(predictor.classes, start=1)
        categories = json.dumps([{'id': i, 'name': name} for i, name in names])
        about = f'{{"categories": {categories}, "images": ', '}'
        path = out / 'images.json'
        self.add_image = self.enter_context(_json_list(path, *about))
        path = out / 'detections.json'
        self.add_detection = self.enter_context(_json_list(path))

    def add(self, frame: Frame, sample: DetDataSample) -> None:
        """Write the results of a frame."""
        self.image_id += 1
        height, width = frame.image.shape[:2]
        number = {} if frame.number is None else {'frame': frame.number}
        self.add_image(
            dict(id=self.image_id, file_name=frame.name, width=width,
                 height=height, **number)
        )  # fmt: skip
        table = self.predictor.to_table(sample).round(4)
        table.insert(0, 'image_id', self.image_id)
        table.to_csv(self.csv, index=False, header=self.image_id == 1)
        found = sample.pred_instances
        for row, label in zip(table.itertuples(), found.labels, strict=True):
            box = [row.x1, row.y1, row.x2 - row.x1, row.y2 - row.y1]
            box = [round(number, 4) for number in box]
            self.add_detection(
                dict(image_id=self.image_id, category_id=1 + int(label),
                     bbox=box, score=row.score)
            )  # fmt: skip
        picture = draw_detections(frame.image, found, self.predictor.classes)
        # Files of different folders may have one name.
        path = self.pictures / f'{self.image_id:06}_{Path(frame.name).stem}'
        if frame.number is None:
            content = cv2.imencode('.jpg', picture)[1].tobytes()
            path.with_name(f'{path.name}.jpg').write_bytes(content)
            return
        if frame.name != self.video_of:
            self.video.release()
            self.video_of = frame.name
            codec = cv2.VideoWriter.fourcc(*CODEC)
            self.video = cv2.VideoWriter(
                f'{path}.mp4', codec, frame.fps, picture.shape[1::-1]
            )
            self.callback(self.video.release)
            if not self.video.isOpened():
                raise UsageError(
                    f'{path}.mp4: cannot be written: this OpenCV lacks the '
                    f'codec {CODEC}; pip install opencv-python-headless has it'
                )
        self.video.write(picture)


@contextmanager
def _json_list(
    path: Path, before: str = '', after: str = ''
) -> Iterator[Callable[[Any], None]]:
    """Yield what adds an entry to a list, which ends with the block."""
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
