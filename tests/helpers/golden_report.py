# SPDX-License-Identifier: Apache-2.0
"""Measure the errors against the recorded files, as tables of Markdown.

python tests/helpers/golden_report.py --write docs/method.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import mmcv
import torch
from test_golden import checks
from torch.nn.functional import interpolate

from helpers import golden_detectors
from helpers.golden_files import BOUNDS, Golden, golden_files
from lors_det.files import write_between_marks

BEGIN = (
    '<!-- measured errors: tests/helpers/golden_report.py writes from here -->'
)
END = '<!-- measured errors: to here -->'
KINDS = ('outputs', 'gradients', 'boxes')
RESIZING = {
    'OpenCV, as configured': lambda image, size: mmcv.imresize(image, size),
    'Pillow': lambda image, size: mmcv.imresize(image, size, backend='pillow'),
    'torch, not rounded': lambda image, size: interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].double(),
        size[::-1],
        mode='bilinear',
    )[0].permute(1, 2, 0),
}


def report() -> str:
    """All tables."""
    return '\n'.join(
        [
            '| file | compared | outputs | | gradients | | boxes (px) | |',
            '| --- | --- | --- | --- | --- | --- | --- | --- |',
            '| |' + ' | float32 | float64' * 3 + ' |',
            *error_rows(),
            '',
            f'Resizing, in grey levels of 255 (OpenCV {cv2.__version__}):',
            '',
            '| resized by | largest difference | mean difference |',
            '| --- | --- | --- |',
            *resizing_rows(),
        ]
    )


def error_rows() -> Iterator[str]:
    """One row for each file and what is compared of it."""
    for path, check in checks():
        worst: dict[tuple[str, torch.dtype], float] = {}
        for dtype in BOUNDS:
            for comparison in check(Golden.load(path, dtype)):
                key = comparison.kind, dtype
                errors = [worst.get(key, 0.0), *comparison.errors().values()]
                worst[key] = max(errors)
        cells = [
            f'{worst[kind, dtype]:.1e}' if (kind, dtype) in worst else ''
            for kind in KINDS
            for dtype in BOUNDS
        ]
        if any(cells):
            name = check.__name__
            yield f'| `{path.stem}` | `{name}` | {" | ".join(cells)} |'


def resizing_rows() -> Iterator[str]:
    """Other ways to resize the raw images, against the recorded pixels."""
    goldens = [
        Golden.load(path, torch.float32)
        for path in golden_files()
        if path.stem.startswith('detector_')
    ]
    for name, resize in RESIZING.items():
        difference = torch.cat(
            [
                (torch.as_tensor(resize(raw, size)) - pixels).abs().flatten()
                for golden in goldens
                for raw, size, pixels in golden_detectors.resized(golden)
            ]
        )
        largest, mean = float(difference.max()), float(difference.mean())
        yield f'| {name} | {largest:.2g} | {mean:.2g} |'


def main() -> None:
    """Print the tables, or put them into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', metavar='FILE', type=Path)
    args = parser.parse_args()
    tables = report()
    if args.write is None:
        print(tables)
        return
    write_between_marks(args.write, BEGIN, END, f'\n{tables}\n')


if __name__ == '__main__':
    main()
