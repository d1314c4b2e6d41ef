# SPDX-License-Identifier: Apache-2.0
"""Which tensor of an official DeiT is which tensor of ours.

The LORS release is built on MMClassification; its dense DeiT has the names of
that project. Every tensor is renamed, nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator

from lors_det.convert.official import Pair

LORS_ATTENTION = 'backbone.attn_lors'
LORS_FFN = 'backbone.ffn_lors'
#: Our stacks, by the LORS release's names: the shared weight, the factors of
#: a layer, and the bias of a layer.
LORS_STACKS = {
    'attention.qkv': (
        f'{LORS_ATTENTION}.qkv.weight',
        f'{LORS_ATTENTION}.qkv_private.{{}}',
        f'{LORS_ATTENTION}.bias_per_layer.{{}}.0',
    ),
    'attention.proj': (
        f'{LORS_ATTENTION}.proj.weight',
        f'{LORS_ATTENTION}.proj_private.{{}}',
        f'{LORS_ATTENTION}.bias_per_layer.{{}}.1',
    ),
    'ffn.fc1': (
        f'{LORS_FFN}.layers.0.0.weight',
        f'{LORS_FFN}.layers_private.{{}}.0',
        f'{LORS_FFN}.bias_per_layer.{{}}.0',
    ),
    'ffn.fc2': (
        f'{LORS_FFN}.layers.1.0.weight',
        f'{LORS_FFN}.layers_private.{{}}.1',
        f'{LORS_FFN}.bias_per_layer.{{}}.1',
    ),
}
#: The same for a dense DeiT: the linear layer of a layer.
DENSE_STACKS = {
    'attention.qkv': 'backbone.layers.{}.attn.qkv',
    'attention.proj': 'backbone.layers.{}.attn.proj',
    'ffn.fc1': 'backbone.layers.{}.ffn.layers.0.0',
    'ffn.fc2': 'backbone.layers.{}.ffn.layers.1',
}


def vit_pairs(lors: bool, num_layers: int) -> Iterator[Pair]:
    """All tensors of a classifier.

    Args:
        lors: Whether its stacks are LORS, or dense.
        num_layers: Number of layers.

    Yields:
        One pair for every official tensor.
    """
    yield Pair('backbone.cls_token', ('embed.cls_token',))
    yield Pair('backbone.pos_embed', ('embed.pos_embed',))
    for kind in ('weight', 'bias'):
        yield Pair(
            f'backbone.patch_embed.projection.{kind}',
            (f'embed.proj.{kind}',),
        )
        yield Pair(f'backbone.ln1.{kind}', (f'norm.{kind}',))
        yield Pair(f'head.layers.head.{kind}', (f'head.{kind}',))
        for layer in range(num_layers):
            for theirs, ours in (('ln1', 'norm1'), ('ln2', 'norm2')):
                yield Pair(
                    f'backbone.layers.{layer}.{theirs}.{kind}',
                    (f'encoder.{ours}.{layer}.{kind}',),
                )
    yield from _lors_pairs(num_layers) if lors else _dense_pairs(num_layers)


def _lors_pairs(num_layers: int) -> Iterator[Pair]:
    for stack, (shared, private, bias) in LORS_STACKS.items():
        ours = f'encoder.{stack}'
        yield Pair(shared, (f'{ours}.shared',))
        for i in range(num_layers):
            factors = private.format(i)
            yield Pair(f'{factors}.0.weight', (f'{ours}.private_A.{i}',))
            yield Pair(f'{factors}.1.weight', (f'{ours}.private_B.{i}',))
            yield Pair(bias.format(i), (f'{ours}.bias.{i}',))


def _dense_pairs(num_layers: int) -> Iterator[Pair]:
    for stack, linear in DENSE_STACKS.items():
        for i in range(num_layers):
            theirs, ours = linear.format(i), f'encoder.{stack}'
            yield Pair(f'{theirs}.weight', (f'{ours}.dense.{i}',))
            yield Pair(f'{theirs}.bias', (f'{ours}.bias.{i}',))
