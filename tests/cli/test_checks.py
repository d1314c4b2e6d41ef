# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from lors_det.cli.checks import check_dataset, check_work_dir
from lors_det.errors import UsageError
from lors_det.files import check_output


def config(root: Path, **changes: object) -> dict:
    inner = {
        'data_root': str(root),
        'ann_file': 'train.json',
        'data_prefix': {'img': 'images/'},
        **changes,
    }
    both = {'type': 'ConcatDataset', 'datasets': [inner, inner]}
    outer = {'type': 'RepeatDataset', 'times': 2, 'dataset': both}
    return {'train_dataloader': {'dataset': outer}}


def test_dataset(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    found = f'train_dataloader.dataset.ann_file: {tmp_path}/train.json does '
    with pytest.raises(UsageError, match=f'^{found}not exist; get COCO 2017 '):
        check_dataset(cfg, 'train')
    (tmp_path / 'train.json').touch()
    with pytest.raises(
        UsageError, match=r'dataset.data_prefix.img: .*/images'
    ):
        check_dataset(cfg, 'train')
    (tmp_path / 'images').mkdir()
    check_dataset(cfg, 'train')
    check_dataset(cfg, 'val')  # the config has none
    # Remote files are left to their backend.
    check_dataset(
        config(Path('s3://b/coco'), backend_args={'backend': 'x'}), 'train'
    )
    remote = {'ann_file': 'http://a/b.json', 'data_prefix': {}}
    check_dataset(config(Path(), **remote), 'train')


def test_work_dir_and_outputs(tmp_path: Path) -> None:
    check_work_dir(str(tmp_path / 'new'))
    check_output(str(tmp_path), '--show-dir')
    (tmp_path / 'iter_2.pth').touch()
    with pytest.raises(UsageError, match=r'holds 1 checkpoints .*--resume'):
        check_work_dir(str(tmp_path))
    for path in (tmp_path, tmp_path / 'iter_2.pth'):
        with pytest.raises(UsageError, match=r'--out .* is there already'):
            check_output(str(path), '--out')
