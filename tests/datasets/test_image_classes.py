# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

from lors_det.datasets.image_classes import (
    CIFAR100Images,
    DigitImages,
    ImageClasses,
)
from lors_det.errors import UsageError


def test_digits() -> None:
    train, test = DigitImages('train'), DigitImages('test')
    assert (len(train), len(test)) == (1347, 450)
    assert train[0]['inputs'].shape == (1, 8, 8)
    images = torch.cat([train.images, test.images])
    assert (int(images.min()), int(images.max())) == (0, 16)
    # Every image is in one of the two, once.
    assert len(images.flatten(1).unique(dim=0)) == 1797
    assert test.labels.bincount().tolist() == [
        45, 46, 44, 46, 45, 46, 45, 45, 43, 45,
    ]  # fmt: skip
    assert train.metainfo == {'classes': tuple('0123456789')}
    again = DigitImages('test')
    assert torch.equal(test.images, again.images)
    assert torch.equal(test.labels, again.labels)


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('sklearn.datasets', 'sklearn'):
        monkeypatch.setitem(sys.modules, name, None)
    message = 'the digits come with scikit-learn, which is not installed .*'
    with pytest.raises(UsageError, match=message + 'pip install scikit-learn'):
        DigitImages('train')


def test_transforms() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2)
    dataset = ImageClasses(
        images,
        torch.tensor([0]),
        ['one'],
        [{'type': 'RandomHorizontalFlip', 'p': 1.0}],
    )
    assert dataset[0]['inputs'].tolist() == [[[1, 0], [3, 2]]]
    assert dataset[0]['data_samples'] == 0
    for name in ('Flip', 'functional', None):
        message = f'dataset.transforms: type={name!r}: expected the name'
        with pytest.raises(ValueError, match=re.escape(message)):
            ImageClasses(images, torch.tensor([0]), [], [{'type': name}])


def test_wrong_split() -> None:
    for build in (DigitImages, lambda split: CIFAR100Images('data', split)):
        with pytest.raises(ValueError, match=r"dataset\.split='val': exp"):
            build('val')


def write(path: Path, content: dict[str, Any]) -> str:
    """Write a pickle; its checksum."""
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in CIFAR-100's format: 3 training and 2 test images."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    sums = {}
    for split, count in (('train', 3), ('test', 2)):
        pixels = np.random.default_rng(count).integers(
            0, 256, (count, 3072), dtype=np.uint8
        )
        sums[split] = write(
            folder / split,
            {'data': pixels, 'fine_labels': list(range(97, 97 + count))},
        )
    names = [f'class {i}' for i in range(100)]
    checksum = write(folder / 'meta', {'fine_label_names': names})
    monkeypatch.setattr(CIFAR100, 'train_list', [['train', sums['train']]])
    monkeypatch.setattr(CIFAR100, 'test_list', [['test', sums['test']]])
    monkeypatch.setattr(CIFAR100, 'meta', {**CIFAR100.meta, 'md5': checksum})
    return tmp_path


def test_cifar100(cifar100: Path) -> None:
    for split, labels in (('train', [97, 98, 99]), ('test', [97, 98])):
        dataset = CIFAR100Images(str(cifar100), split)
        assert dataset.labels.tolist() == labels
        content = pickle.loads(
            (cifar100 / 'cifar-100-python' / split).read_bytes()
        )
        for i in range(len(dataset)):
            image = dataset[i]['inputs']
            assert image.dtype == torch.uint8
            expected = torch.from_numpy(content['data'][i]).view(3, 32, 32)
            assert torch.equal(image, expected)
    assert len(dataset.metainfo['classes']) == 100


def test_cifar100_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nobody listens there
    url = 'http://127.0.0.1:9/cifar-100-python.tar.gz'
    monkeypatch.setattr(CIFAR100, 'url', url)
    for download, reason in (
        (True, r'downloading failed: .*Connection refused'),
        (False, 'downloading is switched off'),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            CIFAR100Images(str(tmp_path), 'train', download=download)
        text = str(caught.value)
        assert '\n' not in text
        assert text.startswith(
            'dataset.data_root: no complete cifar-100-python in '
            f'{tmp_path} (downloading '
        )
        assert f'get {url} where there is a network' in text
