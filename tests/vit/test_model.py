# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.factories import randomise

from lors_det.lors import MODES, fold
from lors_det.vit import Top1Accuracy, ViTClassifier

LORS = {'mode': 'lors', 'rank': 2, 'num_param_groups': [1, 2, 1]}
SMALL = {
    'num_classes': 5,
    'img_size': 8,
    'patch_size': 2,
    'embed_dims': 24,
    'num_layers': 3,
    'num_heads': 3,
    'feedforward_channels': 32,
}


def classifier(mode: str = 'lors', **changes: Any) -> ViTClassifier:
    stack = {**LORS, 'mode': mode}
    stacks = {'attention': stack, 'ffn': stack}
    return ViTClassifier(**{**SMALL, 'stacks': stacks, **changes})


@pytest.mark.parametrize('mode', MODES)
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    model = classifier(mode, mixup=0.8, cutmix=1.0)
    randomise(model)
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 4, 2, 2])
    model(images, labels, mode='loss')['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_folded_is_the_dense_architecture() -> None:
    model = classifier('lors').eval()
    randomise(model)
    images = torch.randn(2, 3, 8, 8)
    dense = classifier('dense').eval()
    with torch.no_grad():
        expected = model(images)
        folded = fold(model)
        found = folded(images)
        dense.load_state_dict(folded.state_dict())
        assert torch.equal(dense(images), found)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_predictions() -> None:
    model = classifier()
    randomise(model)
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 2])
    results = model(images, labels, mode='predict')
    scores = torch.stack([result['pred_scores'] for result in results])
    torch.testing.assert_close(scores, model(images).softmax(-1))
    for result, label in zip(results, labels, strict=True):
        assert result['pred_label'] == result['pred_scores'].argmax()
        assert result['gt_label'] == label
    assert 'gt_label' not in model(images, mode='predict')[0]


@pytest.mark.parametrize('mode', ['dense', 'lors'])
def test_initial_values(mode: str) -> None:
    """Largest entry and deviation of every parameter, as in the release."""
    stack = {'mode': mode, 'rank': 32}
    model = ViTClassifier(
        10, num_layers=2, stacks={'attention': stack, 'ffn': stack}
    )
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max())
        std = float(parameter.detach().std())
        bound = std_expected = None
        if re.search(r'private_B|bias|cls_token|^head', name):
            assert largest == 0, name
        elif 'norm' in name:
            assert (largest, std) == (1, 0), name
        elif 'private_A' in name:
            bound = math.sqrt(6 / (768 if 'fc2' in name else 192))
        elif 'ffn' in name:
            bound = math.sqrt(6 / 960)
        elif name == 'embed.proj.weight':
            std_expected = math.sqrt(1 / 48)
        else:
            std_expected = 0.02
        if bound:  # uniform
            assert largest <= bound, name
            std_expected = bound / math.sqrt(3)
        if std_expected:
            assert std == pytest.approx(std_expected, rel=0.05), name


@pytest.mark.parametrize(
    'alphas', [{'mixup': 0.8}, {'cutmix': 1.0}, {'mixup': 0.8, 'cutmix': 1.0}]
)
def test_mixing(alphas: dict[str, float]) -> None:
    """Labels say how much, or how many pixels, are of which image."""
    mixing = classifier(**alphas).mixing
    images = torch.eye(5)[:, :, None, None].expand(-1, -1, 8, 8)
    kinds = set()
    for _ in range(40 if len(alphas) == 2 else 1):
        mixed, soft = mixing(images, torch.arange(5))
        torch.testing.assert_close(soft.sum(-1), torch.ones(5))
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft)
        kinds.add('cutmix' if (mixed % 1 == 0).all() else 'mixup')
    assert kinds == set(alphas)


def test_accuracy() -> None:
    metric = Top1Accuracy()
    samples = [
        {'pred_label': torch.tensor(found), 'gt_label': torch.tensor(right)}
        for found, right in [(0, 0), (1, 2), (2, 2), (3, 3)]
    ]
    metric.process(None, samples[:3])
    metric.process(None, samples[3:])
    assert metric.evaluate(4) == {'accuracy/top1': 75.0}


WRONG = [
    ({'patch_size': 3}, 'patch_size=3: expected a divisor of model.img_size'),
    ({'num_heads': 5}, 'num_heads=5: expected a divisor of model.embed_dims='),
    ({'num_layers': 0}, 'num_layers=0: expected an integer of at least 1'),
    ({'label_smoothing': 1.5}, 'label_smoothing=1.5: expected a number from'),
    ({'mixup': -1.0}, 'mixup=-1.0: expected a number above 0, or 0 for no mi'),
    (
        {'stacks': {'mlp': LORS}},
        "stacks has ['mlp']: expected keys out of ['attention', 'ffn']",
    ),
    (
        {'stacks': {'ffn': {'mode': 'lors', 'rank': 25}}},
        'stacks.ffn.rank=25: expected values from 0 to 24',
    ),
    (
        {'stacks': {'attention': {'mode': 'lors', 'rank': [1, 2]}}},
        'stacks.attention.rank=[1, 2] has 2 entries: expected one value, or '
        'one for each of the 3 layers',
    ),
]


@pytest.mark.parametrize(('changes', 'message'), WRONG)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'model.{message}')):
        classifier(**changes)


def test_wrong_type() -> None:
    with pytest.raises(TypeError, match=r'model\.num_heads=1\.5: expected an'):
        classifier(num_heads=1.5)


def test_wrong_calls() -> None:
    model = classifier()
    with pytest.raises(ValueError, match=r'images of 8 x 7 pixels: expected'):
        model(torch.zeros(1, 3, 8, 7))
    with pytest.raises(ValueError, match="mode='loss' needs data_samples"):
        model(torch.zeros(1, 3, 8, 8), mode='loss')
    with pytest.raises(ValueError, match="mode='x': expected loss, pre"):
        model(torch.zeros(1, 3, 8, 8), mode='x')


def test_a_checkpoint_of_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r'model\.stacks\.attention: the ch'):
        classifier('lors').load_state_dict(classifier('dense').state_dict())


def test_interpolated_position_embedding() -> None:
    model = classifier()
    randomise(model)
    pos_embed, resize = model.embed.pos_embed, model.embed.resize_pos_embed
    assert resize(4, 4) is pos_embed
    resized = resize(3, 6)
    assert resized.shape == (1, 19, 24)
    assert torch.equal(resized[:, 0], pos_embed[:, 0])
    assert model(torch.randn(2, 3, 6, 12)).shape == (2, 5)
    torch.nn.init.constant_(pos_embed, 0.5)
    torch.testing.assert_close(resize(7, 2), torch.full((1, 15, 24), 0.5))


def test_loss_of_hard_and_soft_labels() -> None:
    model = classifier(label_smoothing=0.1)
    randomise(model)
    images, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 2])
    one_hot = F.one_hot(labels, 5).float()
    logs = model(images).log_softmax(-1)
    expected = -((0.9 * one_hot + 0.1 / 5) * logs).sum(-1).mean()
    for given in (labels, one_hot):
        loss = model(images, given, mode='loss')['loss']
        torch.testing.assert_close(loss, expected)
