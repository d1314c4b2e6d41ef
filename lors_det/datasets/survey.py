# SPDX-License-Identifier: Apache-2.0
"""Behind tools/check_dataset.py: everything about the data before a run."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope

from lors_det.analysis.tables import ascii_table
from lors_det.cli.checks import datasets_of
from lors_det.cli.launch import load_config
from lors_det.datasets.coco import CheckedCocoDataset
from lors_det.datasets.findings import ANSWERS, Findings
from lors_det.datasets.images import LoadCheckedImage, inspect_image
from lors_det.errors import UsageError

SPLITS = ('train', 'val', 'test')
KINDS_READ = ('CocoDataset', 'CheckedCocoDataset')


@dataclass
class Survey:
    """What is to be said about one annotation file and its images.

    Args:
        name: The setting that names the data set.
        ann_file: The annotation file.
        num_images: Images that a run uses; 0 if it is refused.
        refused: Why a run is refused; None if it starts.
        findings: The defects.
    """

    name: str
    ann_file: str
    num_images: int = 0
    refused: str | None = None
    findings: Findings = field(default_factory=Findings)

    def __str__(self) -> str:
        """A table, with the verdict above it."""
        verdict = (
            f'a run uses {self.num_images} images'
            if self.refused is None
            else f'a run is refused: {self.refused}'
        )
        lines = [f'{self.name}: {self.ann_file}: {verdict}']
        rows = [['defect', 'count', 'answer', 'first']]
        for kind, found in self.findings.items():
            first = '\n'.join(found.examples)
            rows.append([kind, str(found.count), ANSWERS[kind], first])
        if rows[1:]:
            lines.append(ascii_table(rows))
        elif self.refused is None:
            lines.append('no defects')
        return '\n'.join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            'dataset': self.name,
            'ann_file': self.ann_file,
            'num_images': self.num_images,
            'refused': self.refused,
            'defects': {
                kind: {
                    'count': found.count,
                    'answer': ANSWERS[kind],
                    'first': found.examples,
                }
                for kind, found in self.findings.items()
            },
        }


def parser() -> argparse.ArgumentParser:
    """The arguments of tools/check_dataset.py."""
    result = argparse.ArgumentParser(
        description='Read the annotations and every image of a config, and '
        'tell what a run makes of them (docs/data.md). Exit status 1: a run '
        'would be refused.'
    )
    result.add_argument('config', help='config file')
    result.add_argument('--split', choices=[*SPLITS, 'all'], default='all')
    result.add_argument(
        '--json', metavar='FILE', help='write the findings to a file, too'
    )
    result.add_argument(
        '--num-workers',
        type=int,
        default=min(8, os.cpu_count() or 1),
        metavar='N',
        help='processes that read images (%(default)s); 0 for none but this',
    )
    return result


def check(args: argparse.Namespace) -> bool:
    """Print what is wrong with the data of a config.

    Args:
        args: Parsed arguments of `parser`.

    Returns:
        Whether a run would start.

    Raises:
        UsageError: If the config cannot be read, or its data set is of
            another form than COCO's.
    """
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    splits = SPLITS if args.split == 'all' else (args.split,)
    surveys: list[Survey] = []
    seen: list[Mapping[str, Any]] = []
    for split in splits:
        key = f'{split}_dataloader.dataset'
        for dataset in datasets_of(cfg, split):
            if dataset not in seen:
                seen.append(dataset)
                num_queries = (cfg.get('model') or {}).get('num_queries')
                surveys.append(
                    survey(dataset, key, num_queries, args.num_workers)
                )
                print(surveys[-1], end='\n\n')
    if args.json:
        found = [each.to_dict() for each in surveys]
        Path(args.json).write_text(json.dumps(found, indent=2) + '\n')
    return all(each.refused is None for each in surveys)


def survey(
    config: Mapping[str, Any],
    name: str,
    num_queries: int | None = None,
    num_workers: int = 0,
) -> Survey:
    """Look at one data set, as a run would read it.

    Args:
        config: Of a data set in COCO's form.
        name: The setting that has it.
        num_queries: Queries of the model, if it has such.
        num_workers: Processes that read images.

    Returns:
        What was found.

    Raises:
        UsageError: If it is of another form.
    """
    # The type may be given with its module.
    if str(config.get('type')).split('.')[-1] not in KINDS_READ:
        raise UsageError(
            f'{name}.type={config.get("type")!r}: only {list(KINDS_READ)} '
            'can be checked'
        )
    pipeline = config.get('pipeline') or []
    dataset: CheckedCocoDataset = DATASETS.build(
        {
            **config,
            'type': CheckedCocoDataset,
            'pipeline': [],
            'lazy_init': True,
        }
    )
    result = Survey(name, dataset.ann_file, findings=dataset.findings)
    try:
        with _quiet():
            dataset.full_init()
    except UsageError as error:
        result.refused = str(error)
        result.findings = dataset.findings
        return result
    result.num_images = len(dataset)
    result.findings = dataset.findings
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    for info in infos:
        if num_queries and len(info['instances']) > num_queries:
            result.findings.add(
                'more boxes in an image than queries', info['img_id']
            )
    inspected = _inspect(_loader(pipeline), infos, name, num_workers)
    for info, kinds in zip(infos, inspected, strict=True):
        for kind in kinds:
            result.findings.add(kind, info['img_path'])
    return result


def _inspect(
    loader: LoadCheckedImage,
    infos: list[dict[str, Any]],
    name: str,
    num_workers: int,
) -> Iterator[Iterable[str]]:
    """What is noteworthy about every image, in order."""
    paths = [info['img_path'] for info in infos]
    sizes = [(int(info['height']), int(info['width'])) for info in infos]
    look = partial(inspect_image, loader)
    with contextlib.ExitStack() as stack:
        if num_workers:
            pool = stack.enter_context(ProcessPoolExecutor(num_workers))
            found = pool.map(look, paths, sizes, chunksize=32)
        else:
            found = map(look, paths, sizes)
        for done, kinds in enumerate(found, 1):
            if done % 100 == 0 or done == len(infos):
                print(
                    f'\r{name}: {done}/{len(infos)} images',
                    end='\n' if done == len(infos) else '',
                    file=sys.stderr,
                    flush=True,
                )
            yield kinds


def _loader(pipeline: Iterable[Mapping[str, Any]]) -> LoadCheckedImage:
    """What the pipeline reads images with."""
    for transform in pipeline:
        if transform.get('type') == 'LoadImageFromFile':
            arguments = dict(transform)
            del arguments['type']
            return LoadCheckedImage(**arguments)
    return LoadCheckedImage()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what is said in the table from being said twice."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
