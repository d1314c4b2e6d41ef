# SPDX-License-Identifier: Apache-2.0
"""Write docs/model_zoo.md: python tools/model_zoo.py."""

import argparse
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.cli.boundary import OneLineErrors
from lors_det.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]


def main():
    """Parse the command line and write the page."""
    argparse.ArgumentParser(
        description='Write docs/model_zoo.md from model-index.yml.'
    ).parse_args()
    from lors_det.analysis.zoo import zoo_page  # late: --help needs no torch

    with OneLineErrors():
        atomic_write(ROOT / 'docs' / 'model_zoo.md', zoo_page(ROOT))


if __name__ == '__main__':
    main()
