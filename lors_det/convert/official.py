# SPDX-License-Identifier: Apache-2.0
"""Which tensor of the official releases is which tensor of ours.

Almost all are renamed. The releases generate the channel and the spatial
mixing matrices by one linear layer, here each has its own, so those tensors
are split (and joined on the way back); nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecoderLayout:
    """What has to be known of a decoder to name its tensors.

    Args:
        num_stages: Number of stages.
        num_groups: Number G of channel groups.
        width: Channels of a group, C/G.
        in_points: Number P_in of sampled points of a group.
        out_points: Number P_out of mixed points of a group.
        lors: Whether the mixing is LORS (else it is AdaMixer's).
        num_cls_fcs: Hidden layers of the class branch.
        num_reg_fcs: Hidden layers of the regression branch.
    """

    num_stages: int
    num_groups: int
    width: int
    in_points: int
    out_points: int
    lors: bool
    num_cls_fcs: int = 1
    num_reg_fcs: int = 1


@dataclass(frozen=True)
class Pair:
    """One official tensor and the tensor or tensors it is here.

    Args:
        official: Name in an official checkpoint.
        ours: Names here.
        split: Turns the official tensor into ours.
        join: Turns ours into the official tensor.
    """

    official: str
    ours: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (x,)
    join: Callable[..., Tensor] = lambda x: x


def decoder_pairs(layout: DecoderLayout) -> Iterator[Pair]:
    """All tensors of a decoder and of its initial queries.

    Args:
        layout: Shape of the decoder.

    Yields:
        One pair for every official tensor.
    """
    yield Pair('rpn_head.init_content_features.weight', ('queries.content',))
    yield Pair('rpn_head.init_proposal_bboxes.weight', ('queries.boxes',))
    for stage in range(layout.num_stages):
        yield from _stage_pairs(layout, stage)
    if layout.lors:
        yield from _lors_mixing_pairs(layout)
    else:
        for stage in range(layout.num_stages):
            yield from _dense_mixing_pairs(layout, stage)


def neck_pairs(num_levels: int) -> Iterator[Pair]:
    """All tensors of the neck.

    Args:
        num_levels: Number of pyramid levels.

    Yields:
        One pair for every official tensor.
    """
    for kind in ('weight', 'bias'):
        for level in range(num_levels):
            yield Pair(
                f'neck.lateral_convs.{level}.conv.{kind}',
                (f'neck.convs.{level}.{kind}',),
            )
        yield Pair(f'neck.gn_out.{kind}', (f'neck.norm.{kind}',))


def from_official(
    state: Mapping[str, Tensor], pairs: Iterator[Pair]
) -> dict[str, Tensor]:
    """Rename and split; tensors without a pair are left out.

    Args:
        state: Official tensors by name.
        pairs: What is what.

    Returns:
        Our tensors by name.
    """
    ours: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.official in state:
            parts = pair.split(state[pair.official])
            # Copies: parts that share memory could not be saved on their own.
            if len(parts) > 1:
                parts = tuple(part.clone() for part in parts)
            ours.update(zip(pair.ours, parts, strict=True))
    return ours


def to_official(
    state: Mapping[str, Tensor], pairs: Iterator[Pair]
) -> dict[str, Tensor]:
    """Rename and join; tensors without a pair are left out.

    Args:
        state: Our tensors by name.
        pairs: What is what.

    Returns:
        Official tensors by name.
    """
    return {
        pair.official: pair.join(*(state[name] for name in pair.ours))
        for pair in pairs
        if all(name in state for name in pair.ours)
    }


def _linear(official: str, ours: str, stage: int) -> Iterator[Pair]:
    """A dense layer of one stage."""
    yield Pair(f'{official}weight', (f'{ours}.dense.{stage}',))
    yield Pair(f'{official}bias', (f'{ours}.bias.{stage}',))


def _norm(official: str, ours: str) -> Iterator[Pair]:
    for kind in ('weight', 'bias'):
        yield Pair(f'{official}.{kind}', (f'{ours}.{kind}',))


def _stage_pairs(layout: DecoderLayout, stage: int) -> Iterator[Pair]:
    """Everything of a stage but the mixing."""
    head = f'roi_head.bbox_head.{stage}'
    attn = f'{head}.attention.attn'
    yield from _linear(f'{attn}.in_proj_', 'decoder.attention.in_proj', stage)
    yield from _linear(
        f'{attn}.out_proj.', 'decoder.attention.out_proj', stage
    )
    yield Pair(f'{head}.iof_tau', (f'decoder.attention.iof_tau.{stage}',))
    yield from _norm(
        f'{head}.attention_norm', f'decoder.attention.norm.{stage}'
    )
    sampling = 'sampling' if layout.lors else 'sampling_n_mixing'
    yield from _linear(
        f'{head}.{sampling}.sampling_offset_generator.0.',
        'decoder.sampling.offsets',
        stage,
    )
    yield from _linear(f'{head}.ffn.layers.0.0.', 'decoder.ffn.fc1', stage)
    yield from _linear(f'{head}.ffn.layers.1.', 'decoder.ffn.fc2', stage)
    yield from _norm(f'{head}.ffn_norm', f'decoder.ffn.norm.{stage}')
    for branch, num_fcs in (
        ('cls', layout.num_cls_fcs),
        ('reg', layout.num_reg_fcs),
    ):
        ours = f'decoder.heads.{branch}'
        for fc in range(num_fcs):  # official: linear, norm, ReLU in one list
            official = f'{head}.{branch}_fcs'
            yield from _linear(
                f'{official}.{3 * fc}.', f'{ours}.fcs.{fc}', stage
            )
            yield from _norm(
                f'{official}.{3 * fc + 1}', f'{ours}.norms.{fc}.{stage}'
            )
        yield from _linear(f'{head}.fc_{branch}.', f'{ours}.out', stage)


def _dense_mixing_pairs(layout: DecoderLayout, stage: int) -> Iterator[Pair]:
    """AdaMixer's mixing of one stage."""
    parent = f'roi_head.bbox_head.{stage}.sampling_n_mixing'
    mixing = f'{parent}.adaptive_mixing'
    yield from _generator(
        layout, f'{mixing}.parameter_generator.0', f'dense.{stage}'
    )
    yield from _linear(f'{mixing}.out_proj.', 'decoder.mixing.out_proj', stage)
    yield from _norm(f'{parent}.norm', f'decoder.mixing.norm.{stage}')


def _lors_mixing_pairs(layout: DecoderLayout) -> Iterator[Pair]:
    """The mixing of LORS, all stages."""
    mixing = 'roi_head.adaptive_mixing'
    channel, spatial = 'decoder.mixing.channel', 'decoder.mixing.spatial'
    out = 'decoder.mixing.out_proj'
    yield from _generator(
        layout, f'{mixing}.common_parameter_generator', 'shared'
    )
    yield Pair(f'{mixing}.base_out_proj.weight', (f'{out}.shared',))

    def terms(x: Tensor) -> tuple[Tensor, ...]:
        """(G * K, ., .) to (G, K, ., .)."""
        return (x.unflatten(0, (layout.num_groups, -1)),)

    for stage in range(layout.num_stages):
        for name, ours in (
            ('ml', f'{channel}.private_B'),
            ('mr', f'{channel}.private_A'),
            ('sl', f'{spatial}.private_B'),
            ('sr', f'{spatial}.private_A'),
        ):
            yield Pair(
                f'{mixing}.{name}_parameters.{stage}',
                (f'{ours}.{stage}',),
                terms,
                lambda x: x.flatten(0, 1),
            )
        for kind in ('weight', 'bias'):
            yield Pair(
                f'{mixing}.private_parameter_generator.{stage}.{kind}',
                (
                    f'{channel}.private_E.{stage}.{kind}',
                    f'{spatial}.private_E.{stage}.{kind}',
                ),
                lambda x: x.chunk(2),
                lambda *parts: torch.cat(parts),
            )
        yield Pair(
            f'{mixing}.out_weight_add_A.{stage}', (f'{out}.private_A.{stage}',)
        )
        yield Pair(
            f'{mixing}.out_weight_add_B.{stage}', (f'{out}.private_B.{stage}',)
        )
        yield Pair(
            f'{mixing}.out_weight_bias.{stage}', (f'{out}.bias.{stage}',)
        )
        yield from _norm(
            f'{mixing}.out_norm.{stage}', f'decoder.mixing.norm.{stage}'
        )


def _generator(
    layout: DecoderLayout, official: str, ours: str
) -> Iterator[Pair]:
    """A generator of both mixings: rows are (group, [channel | spatial])."""
    sizes = [layout.width**2, layout.out_points * layout.in_points]

    def split(x: Tensor) -> tuple[Tensor, ...]:
        parts = x.unflatten(0, (layout.num_groups, -1)).split(sizes, dim=1)
        return tuple(part.flatten(0, 1) for part in parts)

    def join(*parts: Tensor) -> Tensor:
        grouped = [p.unflatten(0, (layout.num_groups, -1)) for p in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    for kind in ('weight', 'bias'):
        yield Pair(
            f'{official}.{kind}',
            (
                f'decoder.mixing.channel.{ours}.{kind}',
                f'decoder.mixing.spatial.{ours}.{kind}',
            ),
            split,
            join,
        )
