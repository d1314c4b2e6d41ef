# SPDX-License-Identifier: Apache-2.0
"""Draw what tools/explain.py is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from lors_det.analysis import weights
from lors_det.analysis.explain import (
    animate_query,
    plot_images,
    plot_query,
    summarise,
)
from lors_det.analysis.trace import ImageTrace, trace_image
from lors_det.cli.boundary import OneLineErrors
from lors_det.deploy.exported import is_exported
from lors_det.errors import UsageError
from lors_det.files import load_config
from lors_det.media import IMAGES
from lors_det.predict import Predictor


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
    if is_exported(args.checkpoint):
        raise UsageError(
            f'CHECKPOINT: {args.checkpoint}: the stages of an exported file '
            'cannot be seen; expected a checkpoint'
        )
    images = [] if args.image is None else _find_images(args.image)
    errors.cfg = load_config(args.config)
    predictor = load_predictor(errors.cfg, args.checkpoint, args.device)
    model = predictor.model
    errors.first_batch_done = True  # what fails now is no mistake of a user
    traces = (trace_image(predictor, image) for image in images)
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
    query, label = _choose_query(trace, args.detection, args.query)
    file = args.out / f'{args.image.stem}_query-{query}.png'
    plot_query(trace, query, label, file)
    if not args.gif:
        return [file]
    animate_query(trace, query, label, file.with_suffix('.gif'))
    return [file, file.with_suffix('.gif')]


def load_predictor(
    cfg: Config, checkpoint: str, device: str | None, trust: bool = False
) -> Predictor:
    """Build a trained AdaMixer.

    Args:
        cfg: Its config.
        checkpoint: See `Predictor`, as the others.
        device: Where it runs.
        trust: Whether the checkpoint may run code.

    Raises:
        UsageError: If it is no AdaMixer, or the checkpoint does not fit.
    """
    model_type = (cfg.get('model') or {}).get('type')
    if model_type != 'AdaMixer':
        raise UsageError(
            f"CONFIG: model.type={model_type!r}: expected 'AdaMixer'"
        )
    cfg.model.compile = False  # compiled parts call no hooks
    return Predictor(cfg, checkpoint, device, trust)


def _find_images(path: Path) -> list[Path]:
    """Return an image, or those of a folder."""
    if not path.exists():
        raise UsageError(f'IMAGE: {path} does not exist')
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    images = [file for file in files if file.suffix.lower() in IMAGES]
    if not images:
        raise UsageError(
            f'IMAGE: {path}: expected an image or a folder of images '
            f'({", ".join(IMAGES)})'
        )
    return images


def _choose_query(
    trace: ImageTrace, detection: int | None, query: int | None
) -> tuple[int, int]:
    """Find the query that is to be explained, and its class.

    If a query is named, that is its best class in the last stage.
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
