# SPDX-License-Identifier: Apache-2.0
"""Parameters of the detectors in configs/lors_detr, dense against LORS.

``python tests/helpers/lors_detr_table.py --write docs/lors_detr.md``
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from lors_det.files import write_between_marks

ROOT = Path(__file__).parents[2]
CONFIG_DIR = ROOT / 'configs' / 'lors_detr'
CONFIGS = sorted(path.name for path in CONFIG_DIR.glob('*.py'))
MARKS = (
    '<!-- parameters: tests/helpers/lors_detr_table.py writes from here -->\n',
    '<!-- parameters: to here -->\n',
)
PARTS = {
    'encoder': ('encoder',),
    'decoder': ('decoder', 'roi_head'),
    'whole': ('',),
}


def load(name: str) -> Config:
    """A config; its imports register what it builds."""
    cfg = Config.fromfile(CONFIG_DIR / name)
    init_default_scope('mmdet')
    return cfg


def dense_config(model: dict[str, Any]) -> dict[str, Any]:
    """The same detector without LORS."""
    model = copy.deepcopy(model)
    model['type'] = model.pop('detector')
    model.pop('stacks')
    return model


def count(config: dict[str, Any]) -> dict[str, int]:
    """Parameters by part."""
    from mmdet.registry import MODELS

    with torch.device('meta'):
        model = MODELS.build(copy.deepcopy(config))
    return {
        part: sum(
            p.numel()
            for name, p in model.named_parameters()
            if name.startswith(prefixes)
        )
        for part, prefixes in PARTS.items()
    }


def table() -> str:
    lines = [
        '| config | part | dense | LORS | fewer |',
        '| --- | --- | --- | --- | --- |',
    ]
    for name in CONFIGS:
        model = load(name).model
        lors, dense = count(model), count(dense_config(model))
        for part in PARTS:
            if dense[part]:
                less = 100 * (1 - lors[part] / dense[part])
                lines.append(
                    f'| `{name.removesuffix(".py")}` | {part} '
                    f'| {dense[part]:,} | {lors[part]:,} | {less:.1f} % |'
                )
    return '\n'.join(lines) + '\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', type=Path, metavar='DOCUMENT')
    path = parser.parse_args().write
    if path is None:
        sys.stdout.write(table())
    else:
        write_between_marks(path, *MARKS, table())


if __name__ == '__main__':
    main()
