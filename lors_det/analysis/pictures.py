# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections that stay readable with thirty boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Okabe and Ito, which the colour-blind can tell apart; without black.
COLORS = (
    '#56B4E9', '#E69F00', '#009E73', '#F0E442', '#CC79A7', '#D55E00',
    '#0072B2',
)  # fmt: skip
Rectangle = tuple[float, float, float, float]


def draw_detections(
    image: np.ndarray[Any, Any], found: Any, classes: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Draw boxes with their scores, and below the image what a colour means.

    A score that would cover another is left out, the lower one. With more
    classes than colours, the name of the class stands before the score.

    Args:
        image: (H, W, 3) uint8, in the order blue, green, red.
        found: ``bboxes`` (N, 4), x1, y1, x2, y2 in pixels, drawn no further
            than the image; ``labels`` (N,) and ``scores`` (N,).
        classes: Names of the classes.

    Returns:
        (H + legend, W, 3), in the order blue, green, red.
    """
    height, width = image.shape[:2]
    size = max(11, round(max(height, width) / 60))
    font = ImageFont.load_default(size)
    line = max(1, round(max(height, width) / 600))
    picture = Image.new('RGB', (width, height + 2 * size), 'white')
    picture.paste(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))
    draw = ImageDraw.Draw(picture)

    labels: list[int] = found.labels.tolist()
    boxes = _inside(found.bboxes, width, height)
    for box, label in zip(boxes, labels, strict=True):
        draw.rectangle(box, outline=_color(label), width=line)
    taken = list[Rectangle]()
    for box, label, score in zip(
        boxes, labels, found.scores.tolist(), strict=True
    ):
        text = f'{score:.2f}'[1 if score < 0.995 else 0 :]
        if len(classes) > len(COLORS):
            text = f'{classes[label]} {text}'
        span = draw.textlength(text, font) + 4
        place = _free_place(box, span, size + 2, (width, height), taken)
        if place:
            taken.append(place)
            draw.rectangle(place, fill=_color(label))
            middle = place[0] + 2, (place[1] + place[3]) / 2
            draw.text(middle, text, 'black', font, anchor='lm')
    _draw_legend(draw, labels, classes, font, (width, height))
    return np.asarray(picture)[..., ::-1].copy()


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    labels: Sequence[int],
    classes: Sequence[str],
    font: Any,
    image_size: tuple[int, int],
) -> None:
    """Write which classes are there, and how many of each, as far as it fits.

    It has one line always, so that the frames of a video have one size.
    """
    size = font.size
    x, y = size / 2, image_size[1] + size
    for label, number in sorted(Counter(labels).items()):
        text = f'{classes[label]} {number}'
        end = x + 1.5 * size + draw.textlength(text, font)
        if end > image_size[0]:
            draw.text((x, y), '...', 'black', font, anchor='lm')
            break
        swatch = (x, y - size / 2, x + size, y + size / 2)
        draw.rectangle(swatch, fill=_color(label))
        draw.text((x + 1.5 * size, y), text, 'black', font, anchor='lm')
        x = end + size


def _free_place(
    box: Rectangle,
    width: float,
    height: float,
    image_size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle | None:
    """Return a place at a box for its text, in the image and on no other."""
    x1, y1, x2, y2 = box
    corners = [
        (x1, y1 - height),
        (x1, y1),
        (x1, y2),
        (x2 - width, y2 - height),
    ]
    for x, y in corners:
        x = max(0, min(x, image_size[0] - width))
        place = (x, y, x + width, y + height)
        if 0 <= y <= image_size[1] - height and not any(
            place[0] < other[2]
            and other[0] < place[2]
            and place[1] < other[3]
            and other[1] < place[3]
            for other in taken
        ):
            return place
    return None


def _inside(boxes: Tensor, width: int, height: int) -> list[Rectangle]:
    """Clip boxes to the image."""
    limit = boxes.new_tensor([width, height, width, height]) - 1
    return boxes.clamp(min=0).minimum(limit).tolist()


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)]
