# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections that stay readable with thirty boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

#: Okabe and Ito, which the colour-blind can tell apart; without black.
COLORS = (
    '#0072B2', '#E69F00', '#009E73', '#D55E00', '#56B4E9', '#F0E442',
    '#CC79A7',
)  # fmt: skip
Rectangle = tuple[float, float, float, float]


def draw_detections(
    image: np.ndarray[Any, Any], found: Any, classes: Sequence[str]
) -> np.ndarray[Any, Any]:
    """Draw boxes with their scores, and below the image what a colour means.

    A score that would cover a higher one is left out. With more classes than
    colours, the class stands before the score.

    Args:
        image: (H, W, 3) uint8, in the order blue, green, red.
        found: ``bboxes`` (N, 4), x1, y1, x2, y2 in pixels, drawn no further
            than the image; ``labels`` (N,); ``scores`` (N,), descending.
        classes: Names of the classes.

    Returns:
        (H + legend, W, 3) of the same kind; the legend has one height.
    """
    height, width = image.shape[:2]
    size = max(11, round(max(height, width) / 60))
    font = ImageFont.load_default(size)
    picture = Image.new('RGB', (width, height + 2 * size), 'white')
    picture.paste(Image.fromarray(np.ascontiguousarray(image[..., ::-1])))
    draw = ImageDraw.Draw(picture)
    labels: list[int] = found.labels.tolist()
    limit = found.bboxes.new_tensor([width, height, width, height]) - 1
    boxes = found.bboxes.clamp(min=0).minimum(limit).tolist()
    for box, label in zip(boxes, labels, strict=True):
        draw.rectangle(box, None, _color(label), max(1, round(size / 10)))
    taken = list[Rectangle]()
    scores = found.scores.tolist()
    for box, label, score in zip(boxes, labels, scores, strict=True):
        text = f'{score:.2f}'
        if len(classes) > len(COLORS):
            text = f'{classes[label]} {text}'
        text_size = (draw.textlength(text, font) + 4, size + 2)
        place = _place(box, text_size, (width, height), taken)
        if place:
            taken.append(place)
            draw.rectangle(place, _color(label))
            middle = place[0] + 2, (place[1] + place[3]) / 2
            draw.text(middle, text, _ink(label), font, anchor='lm')
    x, y = size / 2, height + size
    for label, number in sorted(Counter(labels).items()):
        text = f'{classes[label]} {number}'
        draw.rectangle(
            (x, y - size / 2, x + size, y + size / 2), _color(label)
        )
        draw.text((x + 1.5 * size, y), text, 'black', font, anchor='lm')
        x += 2.5 * size + draw.textlength(text, font)
    return np.asarray(picture)[..., ::-1].copy()


def _place(
    box: Rectangle,
    text_size: tuple[float, float],
    image_size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle | None:
    """Return a place at a box for its text, in the image and on no other."""
    (x1, y1, x2, y2), (width, height) = box, text_size
    for x, y in ((x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y2)):
        x = max(0, min(x, image_size[0] - width))
        right, bottom = x + width, y + height
        if 0 <= y <= image_size[1] - height and not any(
            x < r and left < right and y < b and top < bottom
            for left, top, r, b in taken
        ):
            return x, y, right, bottom
    return None


def _color(label: int) -> str:
    return COLORS[label % len(COLORS)]


def _ink(label: int) -> str:
    """Return white on the dark colours, and black on the others."""
    red, green, blue = ImageColor.getrgb(_color(label))[:3]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return 'white' if luma < 128 else 'black'
