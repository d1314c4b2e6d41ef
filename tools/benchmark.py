# SPDX-License-Identifier: Apache-2.0
"""Time detectors: python tools/benchmark.py CONFIG [CONFIG ...]."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.analysis.benchmark import (
    Options,
    build,
    check_checkpoints,
    measure,
    table,
)
from lors_det.analysis.tables import names_of
from lors_det.cli.launch import load_config
from lors_det.errors import UsageError


def main():
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(
        description='Images per second, milliseconds by part and peak memory '
        'of detectors, measured in turns on random images; ratios are '
        'against the first config.'
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument(
        '--checkpoint',
        nargs='+',
        default=[],
        metavar='FILE',
        help='one for each config; random weights if not given',
    )
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--image-size',
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=('H', 'W'),
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--amp', choices=['float16', 'bfloat16'])
    parser.add_argument(
        '--train', action='store_true', help='losses and their gradients'
    )
    parser.add_argument(
        '--compile', action='store_true', help='as model.compile=True'
    )
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='write plain numbers'
    )
    args = vars(parser.parse_args())
    paths, checkpoints = args.pop('configs'), args.pop('checkpoint')
    target = args.pop('json')
    try:
        options = Options(**args)
        check_checkpoints(paths, checkpoints)
        names = names_of(paths)
        if len(set(names)) < len(names):
            raise UsageError('CONFIG: one is named twice')
        models = {
            name: build(name, load_config(path).model, options, checkpoint)
            for name, path, checkpoint in zip(
                names, paths, checkpoints or [None] * len(paths), strict=True
            )
        }
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None
    results = measure(models, options)
    print(table(results, options))
    if target:
        data = {name: asdict(result) for name, result in results.items()}
        target.write_text(
            json.dumps({'options': asdict(options), 'results': data}, indent=1)
            + '\n'
        )


if __name__ == '__main__':
    main()
