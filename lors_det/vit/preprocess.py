# SPDX-License-Identifier: Apache-2.0
"""Batch transforms: normalisation, mixup and cutmix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor
from torchvision.transforms import v2


@MODELS.register_module()
class ImageNormalizer(BaseDataPreprocessor):
    """Move a batch to the device and normalise its images.

    Args:
        mean: Mean of every channel, in the units of the pixels.
        std: Standard deviation of every channel, in the same units.
        non_blocking: Whether copies to the device are asynchronous.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, or a standard
            deviation is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        non_blocking: bool = False,
    ) -> None:
        super().__init__(non_blocking=non_blocking)
        key = 'model.data_preprocessor'
        if len(mean) != len(std):
            raise ValueError(
                f'{key}.std={std!r}: expected one entry for each of '
                f'mean={mean!r}'
            )
        if min(std) <= 0:
            raise ValueError(f'{key}.std={std!r}: expected positive numbers')
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(
                name, torch.tensor(values).view(-1, 1, 1), persistent=False
            )

    def forward(
        self, data: Mapping[str, Any], training: bool = False
    ) -> dict[str, Any]:
        """Normalise a batch.

        Args:
            data: ``inputs`` (B, channels, H, W), and other entries.
            training: Unused; mmengine passes it.

        Returns:
            The same entries on the device; ``inputs`` as floating point.

        Raises:
            ValueError: If images have another number of channels than
                ``mean``.
        """
        data = self.cast_data(data)
        inputs = data['inputs']
        if inputs.shape[1] != len(self.mean):
            raise ValueError(
                f'model.data_preprocessor.mean has {len(self.mean)} entries: '
                f'the images have {inputs.shape[1]} channels'
            )
        return {**data, 'inputs': (inputs - self.mean) / self.std}


class BatchMixing:
    """Torchvision's mixup or cutmix, one of them at random for each batch.

    All images of a batch share one mixing coefficient. Each is mixed with the
    next one in the batch, so the data have to be shuffled.

    Source: mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899), as used by
    DeiT (arXiv:2012.12877).

    Args:
        num_classes: Number of classes.
        mixup: Parameter alpha of mixup; 0 for no mixup.
        cutmix: Parameter alpha of cutmix; 0 for no cutmix.

    Raises:
        ValueError: If an alpha is negative.
    """

    def __init__(
        self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        self.choices = []
        for key, kind, alpha in (
            ('mixup', v2.MixUp, mixup),
            ('cutmix', v2.CutMix, cutmix),
        ):
            if alpha < 0:
                raise ValueError(
                    f'model.{key}={alpha!r}: expected a number above 0, or 0 '
                    f'for no {key}'
                )
            if alpha:
                # Their constructors make tensors and read their values.
                with torch.device('cpu'):
                    choice = kind(alpha=alpha, num_classes=num_classes)
                self.choices.append(choice)

    def __call__(
        self, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch with each other.

        Args:
            images: (B, channels, H, W).
            labels: (B,) classes, or (B, num_classes) probabilities.

        Returns:
            Images of the same shape, and (B, num_classes) probabilities; the
            arguments if both alphas are 0.
        """
        if not self.choices:
            return images, labels
        choice = int(torch.randint(len(self.choices), ()))
        mixed: tuple[Tensor, Tensor] = self.choices[choice](images, labels)
        return mixed
