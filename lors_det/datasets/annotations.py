# SPDX-License-Identifier: Apache-2.0
"""Read a COCO annotation file and check every entry."""

from __future__ import annotations

import json
import posixpath
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lors_det.datasets.defects import ANSWERS, Defects
from lors_det.errors import UsageError

NOT_POSITIVE = 'annotation id that is no positive number'
MALFORMED = 'box, area or iscrowd that is no proper number'


def read_annotations(path: str, name: str) -> dict[str, Any]:
    """Read an annotation file.

    Args:
        path: The local file.
        name: What it is called in messages.

    Returns:
        Its content: ``images``, ``categories`` and ``annotations``, all lists
        of objects; the last is empty if the file has none.

    Raises:
        UsageError: If the file cannot be read, or is not of COCO's form.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except OSError as error:
        raise UsageError(
            f'{name} cannot be read: {error.strerror or error}'
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f'{name} is no JSON, or cut off: {error}, expected annotations '
            "in COCO's form"
        ) from None
    if isinstance(content, dict):
        content.setdefault('annotations', [])  # COCO's test images have none
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key) if isinstance(content, dict) else None
        if not (
            isinstance(entries, list)
            and all(isinstance(entry, dict) for entry in entries)
        ):
            raise UsageError(
                f'{name}: {key!r} is missing or no list of objects, expected '
                "annotations in COCO's form"
            )
    return content


def check_classes(
    content: Mapping[str, Any], classes: Sequence[str], name: str
) -> None:
    """Check that labels mean the same in the file as in the config.

    mmdet numbers classes in the order of the file. A class that is missing,
    given twice or in another order would shift the labels without a warning.

    Args:
        content: See `read_annotations`.
        classes: ``metainfo.classes``, in the order of the labels.
        name: The annotation file.

    Raises:
        UsageError: If the file's categories are not the classes.
    """
    if isinstance(classes, str):
        raise UsageError(
            f'metainfo.classes={classes!r}: expected a list of names, such '
            f'as [{classes!r}], or a file that has them'
        )
    classes = list(classes)
    names = [entry.get('name') for entry in content['categories']]
    if [each for each in names if each in classes] != classes:
        missing = [each for each in classes if each not in names]
        reason = 'expected the same order, each once'
        if missing:
            reason = f'no category is called {missing[0]!r}'
        raise UsageError(
            f'{name}: its categories are {reprlib.repr(names)}, '
            f'metainfo.classes is {reprlib.repr(classes)}: {reason}'
        )
    ids = [entry.get('id') for entry in content['categories']]
    if len({each for each in ids if isinstance(each, int)}) < len(ids):
        raise UsageError(
            f'{name}: its categories have the ids {reprlib.repr(ids)}, '
            'expected another number for each'
        )


def check_annotations(content: dict[str, Any], min_size: float = 0) -> Defects:
    """Check every image record and annotation, and mend what can be mended.

    Annotations that are left out are removed from ``content``. Those that are
    left out in training only stay, since the metric counts them.

    Args:
        content: See `read_annotations`.
        min_size: ``filter_cfg.min_size`` in pixels.

    Returns:
        All defects.
    """
    defects = Defects()
    images = _check_images(content['images'], defects, min_size)
    categories = {entry.get('id') for entry in content['categories']}
    seen: set[Any] = set()
    annotated: set[Any] = set()
    kept = []
    for index, entry in enumerate(content['annotations']):
        wrong = _first_wrong(
            entry, id=_is_id, image_id=_is_id, category_id=_is_id,
            bbox=lambda _: True,  # without proper numbers it is left out
        )  # fmt: skip
        if wrong:
            defects.add(
                'annotation without a proper id, image_id, category_id or '
                'bbox',
                f'annotations[{index}]: {wrong}',
            )
            continue
        number, image = entry['id'], entry['image_id']
        if number in seen:
            defects.add('annotation id used twice', number)
        seen.add(number)
        if isinstance(number, str) or number <= 0:
            defects.add(NOT_POSITIVE, number)
        kind: str | None
        if image not in images:
            kind = 'annotation of an unknown image'
        elif entry['category_id'] not in categories:
            kind = 'annotation of an unknown category'
        else:
            annotated.add(image)
            kind = _box_defect(entry, images[image], defects)
        if kind:
            defects.add(kind, number)
        if not kind or ANSWERS[kind] != 'left out':
            kept.append(entry)
    content['annotations'] = kept
    for image in images:
        if kept and image not in annotated:
            defects.add('image without annotation', image)
    return defects


def _check_images(
    entries: Sequence[dict[str, Any]], defects: Defects, min_size: float
) -> dict[Any, dict[str, Any]]:
    """Check all image records, and return them by id."""
    records: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        wrong = _first_wrong(
            entry, id=_is_id, file_name=lambda value: isinstance(value, str),
            width=_is_size, height=_is_size,
        )  # fmt: skip
        if wrong:
            defects.add(
                'image record without a proper id, file_name, width or height',
                f'images[{index}]: {wrong}',
            )
            continue
        number, name = entry['id'], entry['file_name']
        if not is_inside(name):
            defects.add(
                'file name that leads out of the image folder',
                reprlib.repr(name),
            )
        if number in records:
            same = records[number] == entry
            twice = 'image record given twice'
            defects.add(
                twice if same else 'image id used by two images', number
            )
        if min(entry['width'], entry['height']) < min_size:
            defects.add('image smaller than filter_cfg.min_size', number)
        records[number] = entry
    texts = [number for number in records if isinstance(number, str)]
    if 0 < len(texts) < len(records):
        defects.add('image ids of which some are text', texts[0])
    return records


def is_inside(file_name: str) -> bool:
    """Return whether a file name stays below the folder it is joined to.

    Args:
        file_name: As the annotation file has it; symbolic links are not
            followed, since the folder is the user's own.
    """
    parts = file_name.replace('\\', '/')
    return not (
        posixpath.normpath(parts).split('/')[0] in ('..', '.', '')
        or re.match('[A-Za-z]:/', parts)  # a drive of Windows
        or '://' in parts
        or '\0' in parts
    )


def _box_defect(
    entry: dict[str, Any], image: Mapping[str, Any], defects: Defects
) -> str | None:
    """Return the first defect of a box, if any; the cases are mmdet's own.

    Args:
        entry: The annotation; a missing area and iscrowd are filled in.
        image: The record of its image.
        defects: Receives what is filled in.
    """
    box = entry['bbox']
    if not (
        isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))
    ):
        return MALFORMED
    x, y, w, h = box
    if entry.get('area') is None or entry.get('iscrowd') is None:
        defects.add('annotation without area or iscrowd', entry['id'])
        entry['area'] = w * h if entry.get('area') is None else entry['area']
        entry['iscrowd'] = entry.get('iscrowd') or 0
    if not (_is_finite(entry['area']) and entry['iscrowd'] in (0, 1)):
        return MALFORMED
    width, height = image['width'], image['height']
    outside = x >= width or y >= height or x + w <= 0 or y + h <= 0
    # Rounding takes many boxes of COCO itself a fraction of a pixel outside.
    reaches_out = min(x, y, width - x - w, height - y - h) <= -1
    kinds = {
        'box of negative size': w < 0 or h < 0,
        'box smaller than a pixel': w < 1 or h < 1,
        'box outside of its image': outside,
        'area that is not positive': entry['area'] <= 0,
        'box that reaches out of its image': reaches_out,
    }
    return next((kind for kind, holds in kinds.items() if holds), None)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _is_finite(value: Any) -> bool:
    """Return whether it is a number that float32 can hold."""
    return type(value) in (int, float) and abs(value) < 1e38


def _is_size(value: Any) -> bool:
    return _is_finite(value) and value >= 1


def _first_wrong(
    entry: Mapping[str, Any], **is_proper: Callable[[Any], bool]
) -> str | None:
    """Return the first key that is missing or has a wrong value, if any."""
    for key, check in is_proper.items():
        if key not in entry:
            return f'no {key}'
        if not check(entry[key]):
            return f'{key}={reprlib.repr(entry[key])}'
    return None
