# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from lors_det.cli.checks import check_dataset, check_work_dir
from lors_det.errors import UsageError
from lors_det.files import check_output


def config(root: Path, **changes: object) -> dict:
    dataset = {
        'data_root': str(root),
        'ann_file': 'train.json',
        'data_prefix': {'img': 'images/'},
        **changes,
    }
    return {'train_dataloader': {'dataset': dataset}}


def test_dataset(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with pytest.raises(UsageError) as error:
        check_dataset(cfg, 'train')
    assert str(error.value).startswith(
        f'train_dataloader.dataset.ann_file: {tmp_path}/train.json does not '
        'exist; get COCO 2017 with'
    )
    (tmp_path / 'train.json').touch()
    with pytest.raises(
        UsageError, match=r'dataset.data_prefix.img: .*/images'
    ):
        check_dataset(cfg, 'train')
    (tmp_path / 'images').mkdir()
    check_dataset(cfg, 'train')
    check_dataset(cfg, 'val')  # the config has none


def test_datasets_inside_wrappers(tmp_path: Path) -> None:
    inner = config(tmp_path)['train_dataloader']['dataset']
    for outer in (
        {'type': 'RepeatDataset', 'times': 2, 'dataset': inner},
        {'type': 'ConcatDataset', 'datasets': [inner, inner]},
    ):
        with pytest.raises(UsageError, match=r'train.json does not exist'):
            check_dataset({'train_dataloader': {'dataset': outer}}, 'train')


@pytest.mark.parametrize(
    'changes',
    [
        {'data_root': 's3://bucket/coco/', 'backend_args': {'backend': 'x'}},
        {'data_root': '', 'ann_file': 'http://a/b.json', 'data_prefix': {}},
    ],
)
def test_remote_files_are_left_to_their_backend(changes: dict) -> None:
    check_dataset(config(Path(), **changes), 'train')


def test_work_dir_and_outputs(tmp_path: Path) -> None:
    check_work_dir(str(tmp_path / 'new'))
    check_output(str(tmp_path), '--show-dir')
    (tmp_path / 'iter_2.pth').touch()
    with pytest.raises(UsageError, match=r'holds 1 checkpoints .*--resume'):
        check_work_dir(str(tmp_path))
    for path in (tmp_path, tmp_path / 'iter_2.pth'):
        with pytest.raises(UsageError, match=r'--out .* is there already'):
            check_output(str(path), '--out')
