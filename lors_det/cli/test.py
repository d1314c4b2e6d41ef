# SPDX-License-Identifier: Apache-2.0
"""Test a detector: what tools/test.py does."""

from __future__ import annotations

import argparse
from pathlib import Path

from lors_det.compat import quiet  # noqa: F401  # before others import mmdet

# isort: split
from mmdet.evaluation import CocoMetric, DumpDetResults
from mmengine.config import Config
from mmengine.device import get_device

from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.launch import build_runner, leave
from lors_det.deploy.exported import (
    check_exported_options,
    exported_config,
    is_exported,
)
from lors_det.errors import UsageError
from lors_det.files import check_output
from lors_det.precision import predict_in
from lors_det.safe_load import install


def test(cfg: Config, args: argparse.Namespace, errors: OneLineErrors) -> None:
    """Test as the command line says.

    Args:
        cfg: What `configure` made of the arguments.
        args: Parsed arguments of tools/test.py.
        errors: What turns errors into lines.

    Raises:
        UsageError: If a setting is wrong, a file is missing, or something
            would be overwritten.
    """
    install(args.trust)
    for option, path in (('--out', args.out), ('--show-dir', args.show_dir)):
        if path and not args.overwrite:
            check_output(path, option)
    if args.out and not args.out.endswith(('.pkl', '.pickle', '.bbox.json')):
        raise UsageError(
            f'--out {args.out}: expected a name ending in .pkl or .bbox.json'
        )
    if is_exported(args.checkpoint):
        check_exported_options(None, args.dtype)
        cfg.model = exported_config(cfg, args.checkpoint, args.trust)
        cfg.load_from = None
    else:
        cfg.load_from = args.checkpoint
    if args.show_dir:
        if 'visualization' not in cfg.default_hooks:
            raise UsageError('--show-dir: the model of this config draws none')
        # An absolute path, or the hook puts it below the run's time stamp.
        cfg.default_hooks.visualization.update(
            draw=True, test_out_dir=str(Path(args.show_dir).resolve())
        )
    runner = build_runner(cfg, errors)
    if args.out and args.out.endswith('.bbox.json'):
        found = runner.test_evaluator.metrics
        coco = [each for each in found if isinstance(each, CocoMetric)]
        if not coco:
            raise UsageError(f'--out {args.out}: no CocoMetric in the config')
        coco[0].outfile_prefix = args.out.removesuffix('.bbox.json')
    elif args.out:
        runner.test_evaluator.metrics.append(
            DumpDetResults(out_file_path=args.out)
        )
    predict_in(runner.model, args.dtype, get_device())
    runner.test()
    del runner
    leave()
