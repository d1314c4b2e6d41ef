# SPDX-License-Identifier: Apache-2.0
"""Draw the truth beside detections, colours for classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mmcv
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from pycocotools.coco import COCO

from lors_det.analysis.average_precision import Array
from lors_det.analysis.detection_errors import Confident
from lors_det.analysis.pictures import COLORS
from lors_det.analysis.results import Truth
from lors_det.files import check_file

OTHER_COLOR = '#000000'


def draw_sheet(
    truth: Truth, models: Mapping[str, Confident], image_ids: Sequence[int]
) -> Figure:
    """Draw images with their objects, beside them the detections of models.

    Dashed boxes are errors: detections without an object of their class, and
    objects that no model has found. A row has one image, or two if there is
    one model.

    Args:
        truth: The objects.
        models: What to draw, by the model's name.
        image_ids: The images.

    Returns:
        A figure, 12 inches wide.

    Raises:
        UsageError: If an image is missing.
    """
    num_columns = 4 if len(models) == 1 else 1 + len(models)
    num_rows = -(-len(image_ids) * (1 + len(models)) // num_columns)
    shapes = [truth.coco.imgs[i] for i in image_ids]
    ratio = max([0.5, *(each['height'] / each['width'] for each in shapes)])
    height = num_rows * (12 / num_columns * min(ratio, 1.2) + 0.22) + 0.4
    figure = Figure(figsize=(12, height))
    figure.set_layout_engine(
        'constrained', w_pad=0.02, h_pad=0.02, wspace=0, hspace=0
    )
    figure.subplots(max(num_rows, 1), num_columns)
    for axes in figure.axes:
        axes.set_axis_off()
    panels = iter(figure.axes)
    colors = _class_colors(truth)
    for image_id in image_ids:
        path = truth.image_path(image_id)
        check_file(str(path), 'image')
        pixels = mmcv.imread(str(path), channel_order='rgb')
        objects = pd.concat([each.objects for each in models.values()])
        objects = objects[objects['image_id'] == image_id].groupby(level=0)
        objects = objects.agg({'category_id': 'first', 'right': 'any'})
        title = f'truth of {path.name} ({len(objects)})'
        _draw(next(panels), pixels, title, truth.coco, objects, colors)
        for name, model in models.items():
            found, missed = (
                table[table['image_id'] == image_id]
                for table in (model.found, model.objects)
            )
            title = (
                f'{name:.28} ({len(found)}): '
                f'{(~found["right"]).sum()} false, '
                f'{(~missed["right"]).sum()} missed'
            )
            _draw(next(panels), pixels, title, model.boxes, found, colors)
    labels = {colors[i]: name for i, name in truth.classes.items()}
    if OTHER_COLOR in labels:
        labels[OTHER_COLOR] = 'other classes'
    handles = [
        Patch(fill=False, edgecolor=color, label=label)
        for color, label in labels.items()
    ]
    handles.append(Patch(fill=False, linestyle='--', label='false, or missed'))
    figure.legend(
        handles=handles, loc='outside lower center', ncols=9, frameon=False
    )
    return figure


def _class_colors(truth: Truth) -> dict[int, str]:
    """Return a colour for each class; one for all but the seven largest."""
    by_size = sorted(
        truth.classes, key=lambda i: -len(truth.coco.getAnnIds(catIds=[i]))
    )
    largest = sorted(by_size[: len(COLORS)])
    colors = dict.fromkeys(truth.classes, OTHER_COLOR)
    return {**colors, **dict(zip(largest, COLORS, strict=False))}


def _draw(
    axes: Axes,
    pixels: Array,
    title: str,
    boxes: COCO,
    table: pd.DataFrame,
    colors: Mapping[int, str],
) -> None:
    """Draw boxes with a white rim, which shows on any background."""
    axes.set_title(title, fontsize=8, pad=2)
    axes.imshow(pixels)
    rim = patheffects.withStroke(linewidth=2.8, foreground='white')
    for row in table.itertuples():
        x, y, width, height = boxes.anns[row.Index]['bbox']
        axes.add_patch(
            Rectangle(
                (x, y), width, height, fill=False, linewidth=1.6,
                edgecolor=colors[row.category_id], path_effects=[rim],
                linestyle='-' if row.right else (0, (3, 2)),
            )
        )  # fmt: skip
