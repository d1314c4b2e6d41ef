# SPDX-License-Identifier: Apache-2.0
"""Read a COCO annotation file and check all that it says."""

from __future__ import annotations

import json
import posixpath
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lors_det.datasets.defects import Defects
from lors_det.errors import UsageError

NOT_POSITIVE = 'annotation id that is no positive number'
MALFORMED = 'box, area or iscrowd that is no proper number'


def read_annotations(path: str, name: str) -> dict[str, Any]:
    """Read an annotation file.

    Args:
        path: The local file.
        name: What it is called in messages.

    Returns:
        What it holds; ``images`` and ``categories`` are lists of objects, and
        so is ``annotations``, empty if the file has none.

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

    mmdet numbers classes in the order of the file. One that is missing there,
    twice or at another place, would shift the labels without a word.

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
    names = [entry.get('name') for entry in content['categories']]
    if [each for each in names if each in classes] != list(classes):
        missing = [each for each in classes if each not in names]
        raise UsageError(
            f'{name}: its categories are {_first(names)}, metainfo.classes '
            f'is {_first(classes)}: '
            + (
                f'no category is called {missing[0]!r}'
                if missing
                else 'expected the same order, each once'
            )
        )
    ids = [entry.get('id') for entry in content['categories']]
    numbers = {each for each in ids if isinstance(each, int)}
    if len(numbers) < len(ids):
        raise UsageError(
            f'{name}: its categories have the ids {_first(ids)}, expected '
            'another number for each'
        )


def check_annotations(content: dict[str, Any], min_size: float = 0) -> Defects:
    """Check every image record and annotation, and mend what can be mended.

    Annotations that mmdet would choke on are taken out of ``content``; the
    others stay, since mmdet has its own ways to leave them out, which decide
    what its metric counts.

    Args:
        content: See `read_annotations`.
        min_size: ``filter_cfg.min_size`` in pixels.

    Returns:
        What is wrong.
    """
    defects = Defects()
    sizes = _check_images(content['images'], defects, min_size)
    categories = {entry.get('id') for entry in content['categories']}
    seen: set[Any] = set()
    annotated: set[Any] = set()
    kept = []
    for index, entry in enumerate(content['annotations']):
        number, image = entry.get('id'), entry.get('image_id')
        wrong = _first_wrong(entry, PROPER_ANNOTATION)
        if wrong:
            defects.add(
                'annotation without a proper id, image_id, category_id or '
                'bbox',
                f'annotations[{index}]: {wrong}',
            )
            continue
        if number in seen:
            defects.add('annotation id used twice', number)
        seen.add(number)
        if isinstance(number, str) or number <= 0:
            defects.add(NOT_POSITIVE, number)
        kind = _box_defect(entry, sizes.get(image), defects)
        if image not in sizes:
            kind = 'annotation of an unknown image'
        elif entry['category_id'] not in categories:
            kind = 'annotation of an unknown category'
        else:
            annotated.add(image)
        if kind:
            defects.add(kind, number)
        if kind != MALFORMED:
            kept.append(entry)
    content['annotations'] = kept
    if kept:
        for image in sizes:
            if image not in annotated:
                defects.add('image without annotation', image)
    return defects


def _check_images(
    entries: Sequence[dict[str, Any]], defects: Defects, min_size: float
) -> dict[Any, tuple[float, float]]:
    """Return width and height of every image in pixels, by its id."""
    records: dict[Any, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        number = entry.get('id')
        wrong = _first_wrong(entry, PROPER_IMAGE)
        if wrong:
            defects.add(
                'image record without a proper id, file_name, width or height',
                f'images[{index}]: {wrong}',
            )
            continue
        if not is_inside(entry['file_name']):
            defects.add(
                'file name that leads out of the image folder',
                reprlib.repr(entry['file_name']),
            )
        first = next(iter(records), number)
        if isinstance(number, str) != isinstance(first, str):
            defects.add('image ids of which some are text', number)
        if number in records:
            same = records[number] == entry
            defects.add(
                'image record given twice'
                if same
                else 'image id used by two images',
                number,
            )
        if min(entry['width'], entry['height']) < min_size:
            defects.add('image smaller than filter_cfg.min_size', number)
        records[number] = entry
    return {
        number: (entry['width'], entry['height'])
        for number, entry in records.items()
    }


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
    entry: dict[str, Any],
    size: tuple[float, float] | None,
    defects: Defects,
) -> str | None:
    """Return what is wrong with a box; the cases are mmdet's own.

    Args:
        entry: The annotation; a missing area and iscrowd are filled in.
        size: Width and height of the image; None if it is unknown.
        defects: Receives what does not keep the box from being used.
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
    if w < 0 or h < 0:
        return 'box of negative size'
    if w < 1 or h < 1:
        return 'box smaller than a pixel'
    if size and (x >= size[0] or y >= size[1] or x + w <= 0 or y + h <= 0):
        return 'box outside of its image'
    if entry['area'] <= 0:
        return 'area that is not positive'
    # Rounding takes many boxes of COCO itself a fraction of a pixel outside.
    if size and not (
        min(x, y) > -1 and x + w < size[0] + 1 and y + h < size[1] + 1
    ):
        return 'box that reaches out of its image'
    return None


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str))


def _is_finite(value: Any) -> bool:
    """Return whether it is a number that float32 can hold."""
    return type(value) in (int, float) and abs(value) < 1e38


def _is_size(value: Any) -> bool:
    return _is_finite(value) and value >= 1


PROPER_IMAGE: dict[str, Callable[[Any], bool]] = {
    'id': _is_id,
    'file_name': lambda value: isinstance(value, str),
    'width': _is_size,
    'height': _is_size,
}
PROPER_ANNOTATION: dict[str, Callable[[Any], bool]] = {
    'id': _is_id,
    'image_id': _is_id,
    'category_id': _is_id,
    'bbox': lambda value: True,  # numbers that are none are left out
}


def _first_wrong(
    entry: Mapping[str, Any], proper: Mapping[str, Callable[[Any], bool]]
) -> str | None:
    """Return the first key that is missing or has a wrong value, if any."""
    for key, is_proper in proper.items():
        if key not in entry:
            return f'no {key}'
        if not is_proper(entry[key]):
            return f'{key}={reprlib.repr(entry[key])}'
    return None


def _first(values: Sequence[Any]) -> str:
    """Return the first few of the values as text."""
    more = ', ...' if len(values) > 4 else ''
    return f'[{", ".join(map(repr, values[:4]))}{more}]'
