# SPDX-License-Identifier: Apache-2.0
"""The LORS ViT, equal to the official release, number for number.

Every recorded file whose name begins with ``vit_`` is compared in float32 and
float64; all sizes are in its sidecar. Where the directory under test holds no
such file, the project's own is compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.golden_files import BOUNDS, Check, Comparison, Golden, recorded
from torch import Tensor

from lors_det.convert.models import convert, revert
from lors_det.convert.names import Shapes
from lors_det.convert.vit import vit_names
from lors_det.vit import ViTClassifier


def model_of(golden: Golden) -> ViTClassifier:
    """Our model with the recorded weights, through the converter."""
    config = golden.config
    sizes = (
        'num_classes', 'img_size', 'patch_size', 'in_channels', 'embed_dims',
        'num_layers', 'num_heads', 'feedforward_channels',
    )  # fmt: skip
    stacks = {
        name: {
            'mode': 'lors',
            'rank': config[f'{key}_kernel_sizes'],
            'num_param_groups': config[f'{key}_kernel_groups'],
        }
        for name, key in (('attention', 'attn'), ('ffn', 'ffn'))
    }
    model = ViTClassifier(**{k: config[k] for k in sizes}, stacks=stacks)
    result = convert(golden.section('state/'), 'recorded')
    assert not result.unused
    model.load_state_dict(result.state)
    return model.to(golden.dtype)


def tokens_of(model: ViTClassifier, images: Tensor) -> list[Tensor]:
    """Tokens after every layer; of the last one, normalised."""
    tokens: list[Tensor] = []
    hook = model.encoder.norm1.register_forward_pre_hook(
        lambda _, inputs: tokens.append(inputs[0])
    )
    last = model.encoder(model.embed(images))
    hook.remove()
    return [*tokens[1:], model.norm(last)]


def as_recorded(name: str, tokens: Tensor) -> dict[str, Tensor]:
    """The class token, and the others as a square map."""
    patches = tokens[:, 1:].transpose(1, 2)
    side = round(patches.shape[-1] ** 0.5)
    return {
        f'{name}/cls_token': tokens[:, 0],
        f'{name}/patch_tokens': patches.unflatten(-1, (side, side)),
    }


def outputs_of(model: ViTClassifier, images: Tensor) -> dict[str, Tensor]:
    found = {'logits': model(images)}
    for layer, tokens in enumerate(tokens_of(model, images)):
        found.update(as_recorded(f'layer{layer}', tokens))
    return found


def vit_outputs(golden: Golden) -> Iterator[Comparison]:
    model = model_of(golden)
    found = outputs_of(model, golden['in/img'])
    other = tokens_of(model, golden['in/img_other_size'])[-1]
    found.update(as_recorded('other_size', other))
    expected = golden.section('out/')
    found = {name: found[name] for name in expected if name in found}
    given = ('scalar', 'loss_')
    yield Comparison(
        'outputs',
        found,
        {k: v for k, v in expected.items() if not k.startswith(given)},
    )


def vit_losses(golden: Golden) -> Iterator[Comparison]:
    model, images = model_of(golden), golden['in/img']
    found = {
        f'loss_{kind}': model(images, golden[name], mode='loss')['loss']
        for kind, name in (
            ('hard_labels', 'in/labels'),
            ('soft_labels', 'in/soft_labels'),
        )
    }
    expected = {name: golden[f'out/{name}'] for name in found}
    yield Comparison('outputs', found, expected)


def vit_gradients(golden: Golden) -> Iterator[Comparison]:
    model = model_of(golden)
    images = golden['in/img'].requires_grad_()
    outputs = outputs_of(model, images)
    weights = golden.section('in/loss_weight/')
    scalar = sum((outputs[name] * w).sum() for name, w in weights.items())
    yield Comparison(
        'outputs', {'scalar': scalar}, {'scalar': golden['out/scalar']}
    )
    scalar.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    names = vit_names(Shapes(ours))
    found = {'in/img': images.grad, **names.to_official(ours)}
    yield Comparison('gradients', found, golden.section('grad/'))


def vit_conversion(golden: Golden) -> Iterator[Comparison]:
    """To ours and back: the same bits under the same names."""
    state = golden.section('state/')
    ours = convert(state, 'recorded')
    theirs = revert(ours.state, 'ours')
    assert theirs.model.settings == ours.model.settings
    yield Comparison('equal', theirs.state, state)
    for name in ('img_size', 'patch_size', 'embed_dims', 'num_classes'):
        assert ours.model.settings[name] == golden.config[name]


@pytest.mark.parametrize('path', recorded('vit_*.npz'), ids=lambda p: p.stem)
@pytest.mark.parametrize(
    'check', [vit_outputs, vit_losses, vit_gradients, vit_conversion]
)
@pytest.mark.parametrize('dtype', BOUNDS, ids=str)
def test_golden_vit(path: Path, check: Check, dtype: torch.dtype) -> None:
    golden = Golden.load(path, dtype)
    for comparison in check(golden):
        comparison.check(golden.bounds())
