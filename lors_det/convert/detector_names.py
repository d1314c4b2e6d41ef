# SPDX-License-Identifier: Apache-2.0
"""Names of a detector's tensors in the releases and here.

Almost all tensors keep their values. The releases generate the channel and
the spatial mixing matrices by one linear layer, here each has its own, so
those tensors are split, and joined on the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lors_det.convert.tensors import Rename, read_table

HEAD = 'roi_head.bbox_head.{}.'
DENSE_MIXING = f'{HEAD}sampling_n_mixing.'
LORS_MIXING = 'roi_head.adaptive_mixing.'

#: Below `HEAD` and ``decoder``: a stage without mixing.
STAGE = """
attention.attn.in_proj_(weight|bias)       attention.in_proj.(dense|bias).{}
attention.attn.out_proj.(weight|bias)      attention.out_proj.(dense|bias).{}
iof_tau                                    attention.iof_tau.{}
attention_norm.(weight|bias)               attention.norm.{}.(weight|bias)
ffn.layers.0.0.(weight|bias)               ffn.fc1.(dense|bias).{}
ffn.layers.1.(weight|bias)                 ffn.fc2.(dense|bias).{}
ffn_norm.(weight|bias)                     ffn.norm.{}.(weight|bias)
fc_(cls|reg).weight                        heads.(cls|reg).out.dense.{}
fc_(cls|reg).bias                          heads.(cls|reg).out.bias.{}
"""
#: Below `HEAD`, ``sampling`` or ``sampling_n_mixing``, and ``decoder``.
SAMPLING = """
sampling_offset_generator.0.(weight|bias)  sampling.offsets.(dense|bias).{}
"""
#: Below `DENSE_MIXING` and ``decoder.mixing``.
DENSE = """
adaptive_mixing.out_proj.(weight|bias)     out_proj.(dense|bias).{}
norm.(weight|bias)                         norm.{}.(weight|bias)
"""
#: Below `LORS_MIXING` and ``decoder.mixing``.
LORS = """
base_out_proj.weight                       out_proj.shared
out_weight_add_(A|B).{}                    out_proj.private_(A|B).{}
out_weight_bias.{}                         out_proj.bias.{}
out_norm.{}.(weight|bias)                  norm.{}.(weight|bias)
"""
QUERIES = """
rpn_head.init_content_features.weight      queries.content
rpn_head.init_proposal_bboxes.weight       queries.boxes
"""
#: ``{}`` is the pyramid level.
NECK = """
neck.gn_out.(weight|bias)                  neck.norm.(weight|bias)
neck.lateral_convs.{}.conv.(weight|bias)   neck.convs.{}.(weight|bias)
"""
#: Low-rank factors of the kernels of LORS, by letters of the official name.
FACTORS = {
    'ml': 'channel.private_B',
    'mr': 'channel.private_A',
    'sl': 'spatial.private_B',
    'sr': 'spatial.private_A',
}


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder that the names of its tensors depend on.

    Args:
        num_stages: Number of stages.
        num_groups: Number G of channel groups.
        group_channels: Channels of a group, C / G.
        lors: Whether the mixing is LORS (else it is AdaMixer's).
        num_cls_fcs: Hidden layers of the class branch.
        num_reg_fcs: Hidden layers of the regression branch.
    """

    num_stages: int
    num_groups: int
    group_channels: int
    lors: bool
    num_cls_fcs: int = 1
    num_reg_fcs: int = 1


def decoder_renames(sizes: DecoderSizes) -> Iterator[Rename]:
    """Return the names of a decoder and of its initial queries.

    Args:
        sizes: Sizes of the decoder.

    Yields:
        One rename for every official tensor.
    """
    number, mixing = sizes.num_stages, 'decoder.mixing.'
    yield from read_table(QUERIES)
    yield from read_table(STAGE, number, HEAD, 'decoder.')
    sampling = f'{HEAD}sampling.' if sizes.lors else DENSE_MIXING
    yield from read_table(SAMPLING, number, sampling, 'decoder.')
    for branch, num_fcs in (
        ('cls', sizes.num_cls_fcs),
        ('reg', sizes.num_reg_fcs),
    ):
        official, ours = f'{HEAD}{branch}_fcs.', f'decoder.heads.{branch}.'
        for i in range(num_fcs):  # there one list: linear, norm, ReLU, ...
            table = (
                f'{3 * i}.(weight|bias) fcs.{i}.(dense|bias).{{}}\n'
                f'{3 * i + 1}.(weight|bias) norms.{i}.{{}}.(weight|bias)'
            )
            yield from read_table(table, number, official, ours)
    if sizes.lors:
        yield from read_table(LORS, number, LORS_MIXING, mixing)
        generator = f'{LORS_MIXING}common_parameter_generator'
        yield from _generator(sizes, generator, 'shared')
        for stage in range(number):
            yield from _lors_kernels(sizes, stage)
    else:
        yield from read_table(DENSE, number, DENSE_MIXING, mixing)
        generator = f'{DENSE_MIXING}adaptive_mixing.parameter_generator.0'
        for i in range(number):
            yield from _generator(sizes, generator.format(i), f'dense.{i}')


def neck_renames(num_levels: int) -> Iterator[Rename]:
    """Return the names of the neck.

    Args:
        num_levels: Number of pyramid levels.

    Returns:
        One rename for every official tensor.
    """
    return read_table(NECK, num_levels)


def _lors_kernels(sizes: DecoderSizes, stage: int) -> Iterator[Rename]:
    """Return the names of the low-rank kernels of a stage of LORS."""
    for letters, ours in FACTORS.items():
        yield Rename(
            f'{LORS_MIXING}{letters}_parameters.{stage}',
            (f'decoder.mixing.{ours}.{stage}',),
            # (G * K, ., .) to (G, K, ., .)
            lambda x: (x.unflatten(0, (sizes.num_groups, -1)),),
            lambda x: x.flatten(0, 1),
        )
    for kind in ('weight', 'bias'):
        yield Rename(
            f'{LORS_MIXING}private_parameter_generator.{stage}.{kind}',
            _of_both(f'private_E.{stage}.{kind}'),
            lambda x: x.chunk(2),
            lambda *parts: torch.cat(parts),
        )


def _generator(
    sizes: DecoderSizes, official: str, ours: str
) -> Iterator[Rename]:
    """Return the names of a generator of both mixings.

    Its rows are (group, [channel mixing | spatial mixing]).
    """
    groups = sizes.num_groups, -1

    def split(x: Tensor) -> tuple[Tensor, ...]:
        parts = x.unflatten(0, groups).tensor_split(
            [sizes.group_channels**2], dim=1
        )
        return tuple(part.flatten(0, 1) for part in parts)

    def join(*parts: Tensor) -> Tensor:
        grouped = [part.unflatten(0, groups) for part in parts]
        return torch.cat(grouped, dim=1).flatten(0, 1)

    for kind in ('weight', 'bias'):
        names = _of_both(f'{ours}.{kind}')
        yield Rename(f'{official}.{kind}', names, split, join)


def _of_both(name: str) -> tuple[str, str]:
    """Return the name of a tensor of the channel and the spatial mixing."""
    return f'decoder.mixing.channel.{name}', f'decoder.mixing.spatial.{name}'
