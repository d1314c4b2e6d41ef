# SPDX-License-Identifier: Apache-2.0
"""Write docs/model_zoo.md, or check it: python tools/model_zoo.py."""

import argparse
from pathlib import Path

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.analysis.zoo import zoo_page
from lors_det.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'model_zoo.md'


def main():
    """Parse the command line; write the page, or compare it."""
    parser = argparse.ArgumentParser(
        description='Write docs/model_zoo.md from model-index.yml.'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; fail if the page is not current',
    )
    args = parser.parse_args()
    try:
        page = zoo_page(ROOT)
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None
    if not args.check:
        PAGE.write_text(page, encoding='utf-8')
    elif not PAGE.is_file() or PAGE.read_text(encoding='utf-8') != page:
        raise SystemExit(
            f'error: {PAGE.relative_to(ROOT)} is not current; '
            'python tools/model_zoo.py writes it'
        )


if __name__ == '__main__':
    main()
