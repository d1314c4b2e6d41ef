# SPDX-License-Identifier: Apache-2.0
"""Every defect of an annotation file has its answer."""

from __future__ import annotations

import copy
import logging
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_coco
from helpers.small_coco import (
    Change,
    change,
    content,
    evaluate,
    found_in,
    load,
    logged,
    spoil,
    without,
    write_annotations,
)
from mmdet.datasets import CocoDataset
from mmengine.registry import init_default_scope

from lors_det.datasets.annotations import is_inside
from lors_det.datasets.coco import CheckedCocoDataset, CheckedCocoMetric
from lors_det.datasets.defects import ANSWERS
from lors_det.errors import UsageError

ROOT = Path(__file__).parents[2]


def boxes(dataset: CocoDataset) -> dict[int, list[list[float]]]:
    """Boxes of every image, by its id."""
    infos = map(dataset.get_data_info, range(len(dataset)))
    return {i['img_id']: [b['bbox'] for b in i['instances']] for i in infos}


@pytest.mark.parametrize('part', ['train', 'val'])
@pytest.mark.parametrize('test_mode', [False, True])
def test_without_defects_it_is_mmdets_data_set(
    part: str, test_mode: bool
) -> None:
    init_default_scope('mmdet')
    config = {
        'ann_file': f'annotations/instances_{part}.json',
        'data_root': str(ROOT / 'demo/coco_tiny'),
        'data_prefix': {'img': 'images/'},
        'filter_cfg': {'filter_empty_gt': True, 'min_size': 32},
        'pipeline': [*small_coco.PIPELINE],
        'test_mode': test_mode,
    }
    ours, theirs = CheckedCocoDataset(**config), CocoDataset(**config)
    assert np.array_equal(ours.data_bytes, theirs.data_bytes)
    for index in (0, len(ours) - 1):
        a, b = ours[index], theirs[index]
        assert torch.equal(a['inputs'], b['inputs'])
        a, b = a['data_samples'], b['data_samples']
        first, second = (s.gt_instances.bboxes.tensor for s in (a, b))
        assert torch.equal(first, second)
        assert a.metainfo == b.metainfo
    assert not ours.annotation_defects
    assert not ours.image_defects()


# What is done to the annotations, and what the message says of it.
REFUSED: list[tuple[Change, str]] = [
    (lambda c: c.pop('images'), "'images' is missing or no list of objects"),
    (lambda c: c.update(images=[1, 2]), "'images' is missing or no list of"),
    (lambda c: c.update(images=[]), 'no image is left of 0'),
    (without('images', 1, 'file_name'),
     'image record without a proper id, file_name, width or height: 1 '
     '(images[1]: no file_name)'),
    (without('images', 1, 'width'), 'height: 1 (images[1]: no width)'),
    (change('images', 0, width='640'), "(images[0]: width='640')"),
    (change('images', 0, height=0), '(images[0]: height=0)'),
    (change('images', 0, width=math.nan), '(images[0]: width=nan)'),
    (change('images', 3, id=None), '(images[3]: id=None)'),
    (change('images', 1, id=1), 'image id used by two images: 1 (1)'),
    (change('images', 1, id='a'),
     'image ids of which some are text: 1 (a)'),
    (change('categories', 1, id='a'),
     "its categories have the ids [10, 'a'], expected another number for"),
    (change('annotations', 1, id=10), 'annotation id used twice: 1 (10)'),
    (without('annotations', 2, 'bbox'),
     'annotation without a proper id, image_id, category_id or bbox: 1 '
     '(annotations[2]: no bbox)'),
    (without('annotations', 2, 'id'), '(annotations[2]: no id)'),
    (change('annotations', 2, image_id=[1]), '(annotations[2]: image_id=[1])'),
    (change('images', 0, file_name='../../etc/passwd'),
     "file name that leads out of the image folder: 1 ('../../etc/passwd')"),
    (change('images', 0, file_name='/etc/passwd'), "1 ('/etc/passwd')"),
    (lambda c: c['categories'].pop(),
     "its categories are ['cat'], metainfo.classes is ['cat', 'dog']: no "
     "category is called 'dog'"),
    (lambda c: c['categories'].reverse(),
     "its categories are ['dog', 'cat'], metainfo.classes is ['cat', 'dog']: "
     'expected the same order, each once'),
    (lambda c: c['categories'].append({'id': 3, 'name': 'dog'}),
     "its categories are ['cat', 'dog', 'dog']"),
    (change('categories', 0, id=20), 'its categories have the ids [20, 20]'),
]  # fmt: skip


@pytest.mark.parametrize(('wrong', 'message'), REFUSED)
@pytest.mark.parametrize('test_mode', [False, True])
def test_refused_in_one_line(
    wrong: Change, message: str, test_mode: bool, root: Path
) -> None:
    spoil(root, wrong)
    with pytest.raises(UsageError, match=re.escape(message)) as info:
        load(root, test_mode=test_mode)
    text = str(info.value)
    assert text.startswith(f'{root}/ann.json: ')
    assert '\n' not in text


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'metainfo': {'classes': 'person'}},
            "metainfo.classes='person': expected a list of names, such as "
            "['person'], or a file that has them",
        ),
        (
            {'data_prefix': {'img': 'elsewhere'}},
            '{root}/ann.json: none of 4 images looked for is there, like '
            '{root}/elsewhere/1.png: check data_prefix.img',
        ),
        (
            {'filter_cfg': {'filter_empty_gt': True, 'min_size': 99}},
            '{root}/ann.json: no image is left of 4: check metainfo.classes '
            "and filter_cfg={{'filter_empty_gt': True, 'min_size': 99}}",
        ),
    ],
)
def test_wrong_settings(
    changes: dict[str, Any], message: str, root: Path
) -> None:
    with pytest.raises(UsageError) as info:
        load(root, **changes)
    assert str(info.value) == message.format(root=root)


# What it does to the image 1, whose boxes are annotations 10 and 11; the
# number of boxes that training has left there.
COUNTED: list[tuple[str, Change, int]] = [
    ('image record given twice',
     lambda c: c['images'].append(c['images'][0]), 2),
    ('image without annotation',
     lambda c: c.update(annotations=c['annotations'][2:]), 0),
    ('image smaller than filter_cfg.min_size',
     change('images', 0, width=7), 0),
    ('annotation of an unknown category',
     change('annotations', 0, category_id=99), 1),
    ('annotation of an unknown image',
     change('annotations', 0, image_id=99), 1),
    ('box of negative size',
     change('annotations', 0, bbox=[9, 9, -4, 5]), 1),
    ('box smaller than a pixel',
     change('annotations', 0, bbox=[9, 9, 0, 5]), 1),
    ('area that is not positive', change('annotations', 0, area=0), 1),
    ('box outside of its image',
     change('annotations', 0, bbox=[41, 9, 5, 5]), 1),
    ('box that reaches out of its image',
     change('annotations', 0, bbox=[-5, 9, 15, 5]), 2),
    ('annotation id that is no positive number',
     change('annotations', 0, id=0), 2),
    ('annotation without area or iscrowd',
     lambda c: (c['annotations'][0].pop('iscrowd'),
                c['annotations'][0].pop('area')), 2),
    *(('box, area or iscrowd that is no proper number',
       change('annotations', 0, **values), 1)
      for values in (
        {'bbox': [math.nan, 1, 2, 3]}, {'bbox': [1, 1, math.inf, 3]},
        {'bbox': [1, 2, 3]}, {'bbox': 'box'}, {'bbox': None},
        {'bbox': [1, 2, '3', 4]}, {'bbox': [1, 2, 10**400, 4]},
        {'area': math.nan}, {'area': 'a'}, {'iscrowd': 'yes'},
        {'iscrowd': []},
    )),
]  # fmt: skip


@pytest.mark.parametrize(('kind', 'wrong', 'num_boxes'), COUNTED)
def test_counted_and_reported_once(
    kind: str, wrong: Change, num_boxes: int, root: Path
) -> None:
    annotations = spoil(root, wrong)
    with logged() as records:
        dataset = load(root)
    number = annotations['annotations'][0]['id']
    where = 1 if kind.startswith('image') else number
    assert dataset.annotation_defects[kind] == [where]
    line = f'{root}/ann.json: {kind}, {ANSWERS[kind]}: 1 ({where})'
    (record,) = (r for r in records if line in r.getMessage())
    used = ANSWERS[kind].startswith('used')
    assert record.levelno == (logging.INFO if used else logging.WARNING)

    found = boxes(dataset)
    assert len(found.pop(1, [])) == num_boxes
    expected = [[3.0, 4.0, 15.5, 14.0], [4.0, 4.0, 16.5, 14.0]]
    assert found == dict.fromkeys((2, 3, 4), expected)
    # Nothing is left out in testing but what no metric can count.
    assert len(load(root, test_mode=True)) == 4
    metric = CheckedCocoMetric(ann_file=str(root / 'ann.json'))
    scores = evaluate(metric, found_in(range(1, 5)))
    assert np.isfinite(scores['coco/bbox_mAP_50'])


def test_every_answer_is_tested_and_documented() -> None:
    """Those of image files are in test_images.py and test_check_dataset.py."""
    text = (ROOT / 'docs/data.md').read_text()
    messages = ' '.join(message for _, message in REFUSED)
    counted = {kind for kind, _, _ in COUNTED}
    of_files = list(ANSWERS)[list(ANSWERS).index('missing image') :]
    for kind, answer in ANSWERS.items():
        assert f'\n| {kind} | {answer} |' in text
        if answer == 'refused':
            assert kind in messages
        elif kind != 'more boxes in an image than queries':
            assert (kind in counted) != (kind in of_files)


def test_a_file_that_is_cut_off(root: Path) -> None:
    path = root / 'ann.json'
    whole = path.read_bytes()
    random.seed(0)
    ends = [0, 1, len(whole) - 1, *random.sample(range(len(whole)), 20)]
    others = [b'\x89PNG\r\n', b'[' * 100_000, b'\xff\xfe{}', b'{"a": 1}]']
    for data in (*(whole[:end] for end in ends), *others):
        path.write_bytes(data)
        with pytest.raises(UsageError, match='is no JSON, or cut off'):
            load(root)
    path.write_bytes(b'[]')
    with pytest.raises(UsageError, match="'images' is missing or no list"):
        load(root)
    path.unlink()
    with pytest.raises(UsageError, match='cannot be read: No such file'):
        load(root)


def test_nonsense_is_refused_or_used_but_never_a_traceback(
    root: Path,
) -> None:
    """200 random entries are overwritten with something unfit."""
    random.seed(0)
    junk = [
        None, True, -1, 0, 1e300, math.nan, '', '..', 'x', [], [1], {}, 2**70,
        {'id': 1}, '\0', 'http://host/x.png',
    ]  # fmt: skip
    refused = 0
    for _ in range(200):
        annotations = content()
        entry = random.choice(annotations[random.choice(list(annotations))])
        entry[random.choice(list(entry))] = copy.copy(random.choice(junk))
        write_annotations(root, annotations)
        try:
            dataset = load(root, test_mode=True)
        except UsageError:
            refused += 1
            continue
        found = boxes(dataset)
        assert np.isfinite([b for bs in found.values() for b in bs]).all()
        metric = CheckedCocoMetric(ann_file=str(root / 'ann.json'))
        evaluate(metric, found_in(found))
    assert 50 < refused < 150


@pytest.mark.parametrize(
    ('name', 'inside'),
    [
        ('a.jpg', True), ('a/b.jpg', True), ('./a.jpg', True),
        ('a/../b.jpg', True), ('a:b.jpg', True), ('..a.jpg', True),
        ('../a.jpg', False), ('a/../../b.jpg', False), ('/a.jpg', False),
        ('..', False), ('', False), ('.', False), ('a/..', False),
        ('..\\a.jpg', False), ('C:\\a.jpg', False), ('C:/a.jpg', False),
        ('\\\\host\\a.jpg', False), ('http://host/a.jpg', False),
        ('s3://bucket/a.jpg', False), ('a\0.jpg', False),
    ],
)  # fmt: skip
def test_file_names_stay_below_their_folder(name: str, inside: bool) -> None:
    assert is_inside(name) == inside


def test_ids_that_are_text(root: Path) -> None:
    spoil(
        root,
        *(change('images', i, id=f'i{i}') for i in range(4)),
        *(change('annotations', i, image_id=f'i{i // 2}') for i in range(8)),
    )
    dataset = load(root)
    assert not dataset.annotation_defects
    assert [len(b) for b in boxes(dataset).values()] == [2] * 4
