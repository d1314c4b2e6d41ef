# SPDX-License-Identifier: Apache-2.0
"""Classification data sets of small images, held in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.registry import DATASETS
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR100
from torchvision.transforms import v2

from lors_det.errors import UsageError

SPLITS = ('train', 'test')
#: Size of the digits' test split, and the seed that draws it.
DIGITS_TEST_SIZE = 450
DIGITS_SEED = 0


class ImageClasses(Dataset[dict[str, Any]]):
    """Images in memory with one class each.

    Args:
        images: (N, channels, H, W) uint8.
        labels: (N,) classes, from 0.
        classes: Name of every class.
        transforms: Transforms of an image, in order: for each its ``type``,
            a class name in ``torchvision.transforms.v2``, and its arguments.

    Raises:
        TypeError: If a transform does not take its arguments.
        ValueError: If there is no transform of that name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        transforms: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.images = images
        self.labels = labels
        self.metainfo = {'classes': tuple(classes)}
        self.transforms = [_build_transform(config) for config in transforms]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one image.

        Args:
            index: From 0.

        Returns:
            ``inputs`` (channels, H, W) and ``data_samples``, the class.
        """
        image = self.images[index]
        for transform in self.transforms:
            image = transform(image)
        return {'inputs': image, 'data_samples': self.labels[index]}


def _build_transform(config: Mapping[str, Any]) -> Any:
    """Build a transform of torchvision from its name and its arguments."""
    arguments = dict(config)
    name = arguments.pop('type', None)
    kind = getattr(v2, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, v2.Transform)):
        raise ValueError(
            f'dataset.transforms: type={name!r}: expected the name of a '
            'transform in torchvision.transforms.v2, like '
            "'RandomHorizontalFlip'"
        )
    return kind(**arguments)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(
            f'dataset.split={split!r}: expected one of {list(SPLITS)}'
        )


@DATASETS.register_module()
class CIFAR100Images(ImageClasses):
    """CIFAR-100: 50,000 and 10,000 photos of 32 x 32 pixels, 100 classes.

    Torchvision downloads the data if they are missing, checks and reads them.

    Args:
        data_root: Folder that holds, or will hold, ``cifar-100-python``.
        split: ``train`` or ``test``.
        transforms: See `ImageClasses`.
        download: Whether to download missing data.

    Raises:
        UsageError: If the data are not there and cannot be downloaded.
        ValueError: If the split is unknown.
    """

    def __init__(
        self,
        data_root: str,
        split: str,
        transforms: Sequence[Mapping[str, Any]] = (),
        download: bool = True,
    ) -> None:
        _check_split(split)
        # One process downloads while the others wait.
        if is_main_process():
            data = _read_cifar100(data_root, split, download)
        barrier()
        if not is_main_process():
            data = _read_cifar100(data_root, split, download=False)
        super().__init__(
            torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(data.targets),
            data.classes,
            transforms,
        )


def _read_cifar100(data_root: str, split: str, download: bool) -> Any:
    """Return torchvision's data set, or raise how to get the data."""
    try:
        return CIFAR100(data_root, train=split == 'train', download=download)
    except (OSError, RuntimeError) as error:
        reason = 'downloading is switched off'
        if download:
            reason = f'downloading failed: {error}'
        raise UsageError(
            f'dataset.data_root: no complete {CIFAR100.base_folder} in '
            f'{data_root} ({reason}); get {CIFAR100.url} where there is a '
            'network and unpack it there (tar xzf '
            f'{CIFAR100.filename} -C {data_root}), or train on the digits '
            'that come with scikit-learn (configs/deit/*_digits.py)'
        ) from None


@DATASETS.register_module()
class DigitImages(ImageClasses):
    """Hand-written digits of 8 x 8 grey pixels from 0 to 16, 10 classes.

    The 1,797 images come with scikit-learn, without a split. The test split
    here is 450 images, drawn with a fixed seed and stratified by class.

    Source: the test part of the UCI data set "Optical Recognition of
    Handwritten Digits" (Alpaydin and Kaynak, 1998).

    Args:
        split: ``train`` (1,347 images) or ``test`` (450).
        transforms: See `ImageClasses`.

    Raises:
        UsageError: If scikit-learn is not installed.
        ValueError: If the split is unknown.
    """

    def __init__(
        self, split: str, transforms: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        _check_split(split)
        try:
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise UsageError(
                'the digits come with scikit-learn, which is not installed '
                f'({error}): pip install scikit-learn'
            ) from None
        digits = load_digits()
        parts = train_test_split(
            digits.images,
            digits.target,
            test_size=DIGITS_TEST_SIZE,
            random_state=DIGITS_SEED,
            stratify=digits.target,
        )
        # train_test_split: images of both splits, then labels of both.
        images, labels = parts[SPLITS.index(split) :: 2]
        super().__init__(
            torch.from_numpy(images).to(torch.uint8)[:, None],
            torch.from_numpy(labels),
            [str(name) for name in digits.target_names],
            transforms,
        )
