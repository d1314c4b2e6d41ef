# SPDX-License-Identifier: Apache-2.0
"""Time detectors: python tools/benchmark.py CONFIG [CONFIG ...]."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.arguments import TYPES
from lors_det.cli.boundary import OneLineErrors
from lors_det.errors import UsageError
from lors_det.files import atomic_write, load_config


def main():
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(
        description='Images per second, milliseconds by part and peak memory '
        'of detectors with random weights, measured in alternating rounds '
        'on random images; ratios are against the first config.'
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--image-size',
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=('H', 'W'),
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--dtype',
        '--amp',
        dest='dtypes',
        nargs='+',
        choices=TYPES,
        default=['float32'],
        help='types to compute in, side by side (float32)',
    )
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
    paths = args.pop('configs')
    target = args.pop('json')
    args['dtypes'] = tuple(args['dtypes'])
    with OneLineErrors() as errors:
        # Late: --help needs no torch.
        from lors_det.analysis.benchmark import (
            Options,
            build,
            measure,
            table,
        )

        options = Options(**args)
        if len(set(paths)) < len(paths):
            raise UsageError('CONFIG: one is named twice')
        models = {}
        for path in paths:
            errors.cfg = load_config(path)
            models[path] = build(path, errors.cfg.model, options)
        errors.first_batch_done = True  # what fails now is no mistake
        results = measure(models, options)
        print(table(results, options))
        if target:
            found = {'options': asdict(options), 'results': results}
            atomic_write(target, json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
