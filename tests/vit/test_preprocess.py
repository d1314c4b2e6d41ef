# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
import torch

from lors_det.vit import BatchMixing, ImageNormalizer, Top1Accuracy


def test_normalised() -> None:
    normalizer = ImageNormalizer(mean=[1, 2, 3], std=[1, 2, 4])
    images = torch.tensor([3, 4, 7], dtype=torch.uint8)
    images = images.view(1, 3, 1, 1).expand(2, 3, 4, 4)
    labels = torch.tensor([0, 1])
    data = normalizer({'inputs': images, 'labels': labels}, training=True)
    expected = torch.tensor([2.0, 1.0, 1.0]).view(1, 3, 1, 1)
    assert torch.equal(data['inputs'], expected.expand(2, 3, 4, 4))
    assert torch.equal(data['labels'], labels)
    assert not normalizer.state_dict()


def test_wrong_normalisation() -> None:
    key = re.escape('model.data_preprocessor.')
    with pytest.raises(ValueError, match=f'{key}std=.*one entry for each'):
        ImageNormalizer(mean=[0, 0], std=[1])
    with pytest.raises(ValueError, match=f'{key}std=.*positive'):
        ImageNormalizer(mean=[0], std=[0])
    with pytest.raises(ValueError, match=f'{key}mean has 1 entries.* 3 chan'):
        ImageNormalizer(mean=[0], std=[1])({'inputs': torch.zeros(1, 3, 4, 4)})


def test_nothing_to_choose_from() -> None:
    images, labels = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    mixed = BatchMixing(3)(images, labels)
    assert mixed[0] is images
    assert mixed[1] is labels


def test_mixup() -> None:
    """The labels say how much of which image is in a mixture."""
    images, labels = torch.rand(4, 1, 4, 4), torch.arange(4)
    mixed, soft = BatchMixing(4, mixup=0.8)(images, labels)
    torch.testing.assert_close(soft.sum(-1), torch.ones(4))
    expected = torch.einsum('bn,nchw->bchw', soft, images)
    torch.testing.assert_close(mixed, expected)


def test_cutmix() -> None:
    """The labels say how many pixels are of which image."""
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    mixed, soft = BatchMixing(4, cutmix=1.0)(images, torch.arange(4))
    for i in range(4):
        share = (mixed == i).float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(soft[:, i], share)


def test_both_are_chosen() -> None:
    mixing = BatchMixing(4, mixup=0.8, cutmix=1.0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    whole = [
        bool((mixing(images, torch.arange(4))[0] % 1 == 0).all())
        for _ in range(40)
    ]
    assert {True, False} == set(whole)


def test_accuracy() -> None:
    metric = Top1Accuracy()
    pairs = [(0, 0), (1, 2), (2, 2), (3, 3)]
    samples = [
        {'pred_label': torch.tensor(found), 'gt_label': torch.tensor(right)}
        for found, right in pairs
    ]
    metric.process(None, samples[:3])
    metric.process(None, samples[3:])
    assert metric.evaluate(4) == {'accuracy/top1': 75.0}
