# SPDX-License-Identifier: Apache-2.0
"""Behind tools/check_dataset.py: everything about the data before a run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from mmcv.transforms import TRANSFORMS
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from tqdm import tqdm

from lors_det.analysis.tables import ascii_table
from lors_det.cli.checks import datasets_of
from lors_det.datasets.coco import CheckedCocoDataset
from lors_det.datasets.defects import ANSWERS
from lors_det.datasets.images import (
    LoadCheckedImage,
    checked_pipeline,
    inspect_image,
)
from lors_det.errors import UsageError
from lors_det.files import atomic_write, load_config

DATASET_TYPES = ('CocoDataset', 'CheckedCocoDataset')


def check(args: argparse.Namespace) -> bool:
    """Print what is wrong with the data of a config.

    Args:
        args: Parsed arguments of tools/check_dataset.py.

    Returns:
        Whether a run would start.

    Raises:
        UsageError: If the config cannot be read, or its data set is of
            another form than COCO's.
    """
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    num_queries = (cfg.get('model') or {}).get('num_queries') or sys.maxsize
    splits = ('train', 'val', 'test') if args.split == 'all' else [args.split]
    results: list[dict[str, Any]] = []
    seen: list[Mapping[str, Any]] = []
    for split in splits:
        key = f'{split}_dataloader.dataset'
        for dataset in datasets_of(cfg, split):
            if dataset not in seen:
                seen.append(dataset)
                results.append(
                    _check_one(dataset, key, num_queries, args.num_workers)
                )
                print(_table(results[-1]), end='\n\n')
    if args.json:
        atomic_write(args.json, json.dumps(results, indent=2) + '\n')
    return all(result['refused'] is None for result in results)


def _table(result: Mapping[str, Any]) -> str:
    """Return a result of `_check_one` as text: a verdict and a table."""
    verdict = f'a run uses {result["num_images"]} images'
    if result['refused']:
        verdict = f'a run is refused: {result["refused"]}'
    text = f'{result["dataset"]}: {result["ann_file"]}: {verdict}\n'
    rows = [
        [kind, str(found['count']), found['answer'], '\n'.join(found['first'])]
        for kind, found in result['defects'].items()
    ]
    if rows:
        head = ['defect', 'count', 'answer', 'first']
        return text + ascii_table([head, *rows])
    return text + ('' if result['refused'] else 'no defects')


def build_dataset(config: Mapping[str, Any], name: str) -> CheckedCocoDataset:
    """Build a data set of COCO's form that has read nothing yet.

    Args:
        config: Its config.
        name: The setting.

    Raises:
        UsageError: If it is of another form.
    """
    # The type may be given with its module.
    if str(config.get('type')).split('.')[-1] not in DATASET_TYPES:
        raise UsageError(
            f'{name}.type={config.get("type")!r}: expected one of '
            f'{list(DATASET_TYPES)}'
        )
    ours = {'type': CheckedCocoDataset, 'pipeline': [], 'lazy_init': True}
    return DATASETS.build({**config, **ours})


def _check_one(
    config: Mapping[str, Any], name: str, num_queries: int, num_workers: int
) -> dict[str, Any]:
    """Check one data set, as a run would read it; ``name`` is its setting."""
    dataset = build_dataset(config, name)
    refused = None
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # the table says all of it
    try:
        dataset.full_init()
    except UsageError as error:
        refused = str(error)
    finally:
        logger.setLevel(level)
    defects = dataset.annotation_defects
    num_images = len(dataset) if refused is None else 0
    infos = [dataset.get_data_info(i) for i in range(num_images)]
    for info in infos:
        if len(info['instances']) > num_queries:
            defects.add('more boxes in an image than queries', info['img_id'])
    pipeline = checked_pipeline(config.get('pipeline') or [])
    loads = [each for each in pipeline if each['type'] is LoadCheckedImage]
    loader = TRANSFORMS.build(loads[0]) if loads else LoadCheckedImage()
    inspected = _inspect_images(loader, infos, num_workers)
    for info, kinds in zip(infos, inspected, strict=True):
        for kind in kinds:
            defects.add(kind, info['img_path'])
    return {
        'dataset': name,
        'ann_file': dataset.ann_file,
        'num_images': num_images,
        'refused': refused,
        'defects': {
            kind: {
                'count': len(found),
                'answer': ANSWERS[kind],
                'first': defects.examples(kind),
            }
            for kind, found in defects.items()
        },
    }


def _inspect_images(
    loader: LoadCheckedImage, infos: list[dict[str, Any]], num_workers: int
) -> list[list[str]]:
    """Return what is noteworthy about every image, in order."""
    paths = [info['img_path'] for info in infos]
    sizes = [(int(info['height']), int(info['width'])) for info in infos]
    inspect = partial(inspect_image, loader)
    show = partial(tqdm, desc='images', total=len(infos))
    if not num_workers:
        return list(show(map(inspect, paths, sizes)))
    with ProcessPoolExecutor(num_workers) as pool:
        return list(show(pool.map(inspect, paths, sizes, chunksize=32)))
