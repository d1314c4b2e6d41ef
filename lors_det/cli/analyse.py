# SPDX-License-Identifier: Apache-2.0
"""Look at the detections of a test: what tools/analyse.py does."""

from __future__ import annotations

import argparse
import contextlib
import io
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lors_det.analysis.detection_errors import find_confident
from lors_det.analysis.report import write_report
from lors_det.analysis.results import Truth, read_results
from lors_det.analysis.sheet import draw_sheet
from lors_det.cli.check_dataset import build_dataset
from lors_det.cli.checks import check_dataset, datasets_of
from lors_det.errors import UsageError
from lors_det.files import atomic_write, load_config

NUM_SHEET = 6


def analyse(args: argparse.Namespace) -> Path:
    """Write a report, or a sheet of images, as the command line says.

    Args:
        args: Parsed arguments of tools/analyse.py.

    Returns:
        The file.

    Raises:
        UsageError: If a file cannot be used, or the results are not those of
            the config's test split.
    """
    if not 1 <= len(args.results) <= 2:
        raise UsageError(
            f'RESULTS: {len(args.results)} files, expected 1 or 2'
        )
    if args.resamples < 2:
        raise UsageError(f'--resamples {args.resamples}: expected at least 2')
    truth = read_truth(load_config(args.config))
    models = {
        name: read_results(path, truth)
        for name, path in _names(args.results).items()
    }
    if not args.sheet:
        html = write_report(truth, models, args.score_thr, args.resamples)
        atomic_write(args.out, html)
        return args.out
    # Spread over the data set, not chosen.
    ids = sorted(truth.coco.imgs)
    places = np.linspace(0, len(ids) - 1, min(NUM_SHEET, len(ids)))
    confident = find_confident(truth, models, args.score_thr)
    figure = draw_sheet(truth, confident, [ids[int(i)] for i in places])
    args.sheet.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(args.sheet, dpi=110)
    except ValueError as error:  # an unknown format
        raise UsageError(f'--sheet {args.sheet}: {error}') from None
    return args.sheet


def read_truth(cfg: Config) -> Truth:
    """Read the objects of a config's test split, as its metric counts them.

    Args:
        cfg: The config.

    Raises:
        UsageError: If there is no such split, or its file cannot be used.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    configs = list(datasets_of(cfg, 'test'))
    if len(configs) != 1:
        raise UsageError(
            f'CONFIG: test_dataloader has {len(configs)} data sets, expected 1'
        )
    check_dataset(cfg, 'test')
    dataset = build_dataset(configs[0], 'CONFIG: test_dataloader.dataset')
    with contextlib.redirect_stdout(io.StringIO()):
        coco = dataset.COCOAPI(dataset.ann_file)
        for number, entry in enumerate(coco.dataset['annotations'], 1):
            entry['id'] = number  # to pycocotools, 0 is "unmatched"
        coco.createIndex()
    names = dataset.metainfo['classes']
    return Truth(
        name=dataset.ann_file,
        coco=coco,
        classes={
            i: coco.cats[i]['name'] for i in sorted(coco.getCatIds(names))
        },
        image_folder=Path(dataset.data_prefix.get('img') or ''),
    )


def _names(paths: list[str]) -> dict[str, str]:
    """Return files by the name of their model: the file's, if they differ."""
    if len(set(paths)) < len(paths):
        raise UsageError(f'RESULTS: {paths[0]} is named twice')
    names = {
        Path(path).name.removesuffix('.json').removesuffix('.bbox'): path
        for path in paths
    }
    return names if len(names) == len(paths) else {p: p for p in paths}
