# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from lors_det.cli.checks import check_dataset
from lors_det.errors import UsageError


def config(root: str, **changes: object) -> dict:
    inner = {
        'data_root': root,
        'ann_file': 'train.json',
        'data_prefix': {'img': 'images/'},
        **changes,
    }
    both = {'type': 'ConcatDataset', 'datasets': [inner, inner]}
    outer = {'type': 'RepeatDataset', 'times': 2, 'dataset': both}
    return {'train_dataloader': {'dataset': outer}}


def test_dataset(tmp_path: Path) -> None:
    cfg = config(str(tmp_path))
    found = f'train_dataloader.dataset.ann_file: {tmp_path}/train.json does '
    with pytest.raises(UsageError, match=f'^{found}not exist; get COCO 2017 '):
        check_dataset(cfg, 'train')
    with pytest.raises(UsageError, match='`lors-det init NAME DIR --root '):
        check_dataset(config('demo/none'), 'train')
    (tmp_path / 'train.json').touch()
    with pytest.raises(UsageError, match=r'data_prefix.img: .*/images does'):
        check_dataset(cfg, 'train')
    (tmp_path / 'images').mkdir()
    check_dataset(cfg, 'train')
    check_dataset(cfg, 'val')  # the config has none
    # Remote files are left to their backend.
    check_dataset(config('a', backend_args={'backend': 'x'}), 'train')
    remote = {'ann_file': 'http://a/b.json', 'data_prefix': {}}
    check_dataset(config('', **remote), 'train')
