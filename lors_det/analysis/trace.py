# SPDX-License-Identifier: Apache-2.0
"""Record what a detector does to its queries, stage by stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lors_det.adamixer import AdaMixer, AdaMixerDecoder
from lors_det.adamixer.decoder import StageOutput
from lors_det.adamixer.geometry import decode_xyzr
from lors_det.adamixer.postprocess import best_pairs
from lors_det.adamixer.sampling import Pyramid, level_weights
from lors_det.predict import Predictor


class StageTrace(NamedTuple):
    """Inputs and outputs of one stage, in pixels of the resized images.

    Args:
        before: (B, N, 4) boxes that the stage got, x1, y1, x2, y2.
        after: (B, N, 4) boxes that it returned.
        attention: (B, N, N) how much each query attends to each, the mean of
            the heads; rows sum to 1.
        content: (B, N, C) content after attention, from which points and
            mixing matrices are generated.
        points: (B, N, G, P_in, 3) sampling points: x, y, log2 of the scale.
        level_weights: (B, N, G, P_in, levels); sums to 1 over the levels.
        scores: (B, N, num_classes).
    """

    before: Tensor
    after: Tensor
    attention: Tensor
    content: Tensor
    points: Tensor
    level_weights: Tensor
    scores: Tensor


@contextmanager
def record(decoder: AdaMixerDecoder) -> Iterator[list[StageTrace]]:
    """Watch a decoder while it runs; what it returns stays the same.

    Args:
        decoder: Not compiled.

    Yields:
        A list that holds, after each run of the decoder, what its stages did.
    """
    traces: list[StageTrace] = []
    attended: list[tuple[Tensor, Tensor, int]] = []
    sampled: list[tuple[Pyramid, Tensor, Tensor, int]] = []

    @torch.no_grad()
    def finish(_: Any, __: Any, outputs: Sequence[StageOutput]) -> None:
        """Compute again what stages do not return, from what they got."""
        traces.clear()
        stages = zip(attended, sampled, outputs, strict=True)
        for query, steps, output in stages:
            pyramid, content, xyzr, stage = steps
            points = decoder.sampling.points(content, xyzr, stage)
            traces.append(
                StageTrace(
                    decode_xyzr(xyzr),
                    output.bboxes,
                    decoder.attention.weights(*query).mean(1),
                    content,
                    points,
                    level_weights(points[..., 2], pyramid.strides),
                    output.cls_logits.sigmoid(),
                )
            )
        attended.clear()
        sampled.clear()

    # A hook is removed as its block ends.
    with (
        decoder.attention.register_forward_pre_hook(
            lambda _, args: attended.append(args)
        ),
        decoder.sampling.register_forward_pre_hook(
            lambda _, args: sampled.append(args)
        ),
        decoder.register_forward_hook(finish),
    ):
        yield traces


class ImageTrace(NamedTuple):
    """Inputs and outputs of all stages for one image.

    Args:
        image: (H, W, 3) RGB.
        stages: What every stage did, in pixels of the image; without the
            batch axis.
        scores: (K) of the detections, in descending order.
        labels: (K).
        queries: (K) index of the query behind each detection.
        classes: Names of the classes.
        strides: Stride of every level in pixels.
    """

    image: np.ndarray[Any, Any]
    stages: list[StageTrace]
    scores: Tensor
    labels: Tensor
    queries: Tensor
    classes: Sequence[str]
    strides: Sequence[int]


def trace_image(predictor: Predictor, path: Path) -> ImageTrace:
    """Detect in an image, and record how.

    Args:
        predictor: With an AdaMixer that is not compiled.
        path: The image.

    Raises:
        UsageError: If the image cannot be decoded.
    """
    model: AdaMixer = predictor.model
    with record(model.decoder) as stages:
        ((frame, sample),) = predictor.stream(path)
    scores, labels, queries = best_pairs(stages[-1].scores, model.max_per_img)
    factor = torch.tensor(sample.scale_factor, device=scores.device)
    return ImageTrace(
        frame.image[..., ::-1],
        [_in_original_pixels(stage, factor) for stage in stages],
        scores[0].cpu(),
        labels[0].cpu(),
        queries[0].cpu(),
        predictor.classes,
        model.decoder.strides,
    )


def trace_exported(predictor: Predictor, path: Path) -> ImageTrace:
    """Detect in an image with an exported file, which tells no more than that.

    Args:
        predictor: With an exported file.
        path: The image.

    Returns:
        One stage, without sampling points, with a query for each detection.

    Raises:
        UsageError: If the image cannot be decoded.
    """
    ((frame, sample),) = predictor.stream(path)
    found = sample.pred_instances
    boxes, size = found.bboxes, len(found)
    scores = boxes.new_zeros(size, len(predictor.classes))
    queries = torch.arange(size)
    scores[queries, found.labels] = found.scores
    stage = StageTrace(
        boxes, boxes, boxes.new_zeros(size, size), boxes.new_zeros(size, 0),
        boxes.new_zeros(size, 1, 0, 3), boxes.new_zeros(size, 1, 0, 0), scores,
    )  # fmt: skip
    return ImageTrace(
        frame.image[..., ::-1], [stage], found.scores, found.labels, queries,
        predictor.classes, (),
    )  # fmt: skip


def _in_original_pixels(stage: StageTrace, factor: Tensor) -> StageTrace:
    """Undo the resizing of a batch of one image, and the batch."""
    points = stage.points.clone()
    points[..., :2] /= factor
    original = stage._replace(
        before=stage.before / factor.repeat(2),
        after=stage.after / factor.repeat(2),
        points=points,
    )
    return StageTrace(*(tensor[0].cpu() for tensor in original))
