# SPDX-License-Identifier: Apache-2.0
"""What tools/explain.py does: arguments in, files out."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lors_det.adamixer import AdaMixer
from lors_det.analysis import weights
from lors_det.analysis.benchmark import check_device
from lors_det.analysis.explain import (
    animate_query,
    plot_images,
    plot_query,
    summarise,
)
from lors_det.analysis.trace import ImageTrace, trace_image
from lors_det.cli.boundary import OneLineErrors
from lors_det.errors import UsageError
from lors_det.files import load_config
from lors_det.hooks.checkpoint import load_strictly
from lors_det.safe_load import load_checkpoint

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def explain(args: argparse.Namespace, errors: OneLineErrors) -> list[Path]:
    """Draw what the arguments ask for.

    Args:
        args: Parsed arguments.
        errors: Learns what the config is.

    Returns:
        The files.

    Raises:
        UsageError: If an argument is wrong.
    """
    check_device(args.device)
    images = [] if args.image is None else find_images(args.image)
    errors.cfg = load_config(args.config)
    model = load_detector(errors.cfg, args.checkpoint, args.device)
    errors.first_batch_done = True  # what fails now is no mistake of a user
    traces = (trace_image(model, image) for image in images)
    if args.weights:
        queries = weights.sample_queries(traces) if images else None
        return weights.plot_weights(model, queries, args.out)
    if args.image.is_dir():
        found = [summarise(trace, args.min_score) for trace in traces]
        if not any(len(summary.settled) for summary in found):
            raise UsageError(
                f'--min-score {args.min_score}: no detection reaches it; '
                'expected a lower one'
            )
        return plot_images(found, model.decoder.strides, args.out)
    trace = next(traces)
    query, label = choose_query(trace, args.detection, args.query)
    file = args.out / f'{args.image.stem}_query-{query}.png'
    plot_query(trace, query, label, file)
    if not args.gif:
        return [file]
    animate_query(trace, query, label, file.with_suffix('.gif'))
    return [file, file.with_suffix('.gif')]


def load_detector(cfg: Config, checkpoint: str, device: str) -> AdaMixer:
    """Build a trained detector, ready for mmdet's inference.

    Args:
        cfg: Its config.
        checkpoint: Its weights.
        device: Where it shall run.

    Raises:
        UsageError: If it is no AdaMixer, or the checkpoint does not fit.
    """
    settings = copy.deepcopy(cfg.get('model') or {})
    if settings.get('type') != 'AdaMixer':
        raise UsageError(
            f"CONFIG: model.type={settings.get('type')!r}: expected 'AdaMixer'"
        )
    settings.update(compile=False)  # compiled parts call no hooks
    found = load_checkpoint(checkpoint)
    init_default_scope('mmdet')
    model: AdaMixer = MODELS.build(settings)
    load_strictly(model, found, checkpoint, 'test')
    num_classes = model.decoder.num_classes
    meta = found.get('meta', {}).get('dataset_meta', {})
    classes = meta.get('classes', ())
    if len(classes) != num_classes:
        classes = [f'class {index}' for index in range(num_classes)]
    model.dataset_meta = {'classes': classes}
    model.cfg = cfg  # where mmdet looks for the test pipeline
    return model.to(device).eval()


def find_images(path: Path) -> list[Path]:
    """Return an image, or those of a folder.

    Args:
        path: Image or folder.

    Raises:
        UsageError: If there is none.
    """
    if not path.exists():
        raise UsageError(f'IMAGE: {path} does not exist')
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not images:
        raise UsageError(
            f'IMAGE: {path}: expected an image or a folder of images '
            f'({", ".join(SUFFIXES)})'
        )
    return images


def choose_query(
    trace: ImageTrace, detection: int | None, query: int | None
) -> tuple[int, int]:
    """Find the query that is to be explained, and its class.

    Args:
        trace: Of the image.
        detection: Index by descending score; None if a query is named.
        query: Index; None for that of the detection.

    Returns:
        The query and the class of the detection; that of the highest score
        in the last stage if a query is named.

    Raises:
        UsageError: If there is no such query or detection.
    """
    last = trace.stages[-1].scores
    for option, index, count in (
        ('--detection', detection, len(trace.queries)),
        ('--query', query, len(last)),
    ):
        if index is not None and not 0 <= index < count:
            raise UsageError(
                f'{option} {index}: expected 0 to {count - 1}, the model has '
                f'{count} of an image'
            )
    if query is not None:
        return query, int(last[query].argmax())
    index = detection or 0
    return int(trace.queries[index]), int(trace.labels[index])
