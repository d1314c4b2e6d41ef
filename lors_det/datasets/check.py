# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an annotation file, and what becomes of it."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lors_det.datasets.findings import Findings
from lors_det.errors import UsageError

NOT_POSITIVE = 'annotation id that is no positive number'
MALFORMED = 'box, area or iscrowd that is no proper number'


def read_json(path: str, name: str) -> dict[str, Any]:
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
    if not isinstance(content, dict):
        raise UsageError(
            f'{name} holds a {type(content).__name__}, expected an object '
            "with 'images', 'annotations' and 'categories'"
        )
    content.setdefault('annotations', [])  # COCO's test images have none
    for key in ('images', 'categories', 'annotations'):
        entries = content.get(key)
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
        content: See `read_json`.
        classes: ``metainfo.classes``, in the order of the labels.
        name: The annotation file.

    Raises:
        UsageError: If the file's categories are not the classes.
    """
    known = [entry.get('name') for entry in content['categories']]
    missing = [each for each in classes if each not in known]
    if missing:
        raise UsageError(
            f'{name}: no category is called {missing[0]!r} ({len(missing)} '
            f'of {len(classes)} classes are missing); metainfo.classes names '
            f'what to learn, this file has {_some(known)}'
        )
    order = [each for each in known if each in classes]
    if order != list(classes):
        raise UsageError(
            f'{name}: its categories are {_some(order)}, metainfo.classes '
            f'is {_some(classes)}: expected the same order, each once'
        )
    ids = [entry.get('id') for entry in content['categories']]
    if not (
        all(isinstance(each, int) for each in ids)
        and len(set(ids)) == len(ids)
    ):
        raise UsageError(
            f'{name}: its categories have the ids {_some(ids)}, expected a '
            'number for each'
        )


def check_annotations(
    content: dict[str, Any], min_size: float = 0
) -> Findings:
    """Look at every image record and annotation, and mend what can be.

    Annotations that mmdet would choke on are taken out of ``content``; the
    others stay, since mmdet has its own ways to leave them out, which decide
    what its metric counts.

    Args:
        content: See `read_json`.
        min_size: ``filter_cfg.min_size`` in pixels.

    Returns:
        What was found.
    """
    findings = Findings()
    images = _check_images(content['images'], findings, min_size)
    categories = {entry.get('id') for entry in content['categories']}
    seen: set[Any] = set()
    annotated: set[Any] = set()
    good = []
    for index, entry in enumerate(content['annotations']):
        number, image = entry.get('id'), entry.get('image_id')
        category = entry.get('category_id')
        if not (
            _is_id(number)
            and _is_id(image)
            and _is_id(category)
            and 'bbox' in entry
        ):
            findings.add(
                'annotation without id, image_id, category_id or bbox',
                number if _is_id(number) else f'annotations[{index}]',
            )
            continue
        if number in seen:
            findings.add('annotation id used twice', number)
        seen.add(number)
        if isinstance(number, str) or number <= 0:
            findings.add(NOT_POSITIVE, number)
        kind = _box_defect(entry, images.get(image), findings)
        if image not in images:
            kind = 'annotation of an unknown image'
        elif category not in categories:
            kind = 'annotation of an unknown category'
        else:
            annotated.add(image)
        if kind:
            findings.add(kind, number)
        if kind != MALFORMED:
            good.append(entry)
    content['annotations'] = good
    if good:
        for image in images:
            if image not in annotated:
                findings.add('image without annotation', image)
    return findings


def _check_images(
    entries: Sequence[dict[str, Any]], findings: Findings, min_size: float
) -> dict[Any, tuple[float, float]]:
    """Look at the image records.

    Returns:
        Width and height in pixels of every image, by its id.
    """
    records: dict[Any, dict[str, Any]] = {}
    sizes: dict[Any, tuple[float, float]] = {}
    for index, entry in enumerate(entries):
        number, file_name = entry.get('id'), entry.get('file_name')
        width, height = entry.get('width', 0), entry.get('height', 0)
        if not (
            _is_id(number)
            and isinstance(file_name, str)
            and _is_finite(width)
            and _is_finite(height)
            and min(width, height) >= 1
        ):
            findings.add(
                'image record without id, file_name, width or height',
                number if _is_id(number) else f'images[{index}]',
            )
            continue
        if not is_inside(file_name):
            findings.add(
                'file name that leads out of the image folder', repr(file_name)
            )
        if records and isinstance(number, str) != isinstance(
            next(iter(records)), str
        ):
            findings.add('image ids of which some are text', number)
        if number in records:
            same = records[number] == entry
            findings.add(
                'image record given twice'
                if same
                else 'image id used by two images',
                number,
            )
        if min(width, height) < min_size:
            findings.add('image smaller than filter_cfg.min_size', number)
        records[number] = entry
        sizes[number] = (width, height)
    return sizes


def is_inside(file_name: str) -> bool:
    """Whether a file name stays below the folder it is joined to.

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
    findings: Findings,
) -> str | None:
    """What is wrong with a box; the cases are mmdet's own.

    Args:
        entry: The annotation; a missing area and iscrowd are filled in.
        size: Width and height of the image; None if it is unknown.
        findings: Receives what does not keep the box from being used.
    """
    box = entry['bbox']
    if not (
        isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))
    ):
        return MALFORMED
    x, y, w, h = box
    if entry.get('area') is None or entry.get('iscrowd') is None:
        findings.add('annotation without area or iscrowd', entry['id'])
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
    """Whether it is a number that float32 can hold."""
    return type(value) in (int, float) and abs(value) < 1e38


def _some(values: Sequence[Any]) -> str:
    """A few of the values."""
    more = ', ...' if len(values) > 4 else ''
    return f'[{", ".join(map(repr, values[:4]))}{more}]'
