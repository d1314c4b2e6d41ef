# SPDX-License-Identifier: Apache-2.0
"""Names of a detector's tensors in the releases and here.

Almost all tensors keep their values. The releases generate the channel and
the spatial mixing matrices by one linear layer, here each has its own, so
those tensors are split, and joined on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lors_det.convert.names import Names, Shapes, read_table
from lors_det.errors import UsageError

HEAD = 'roi_head.bbox_head.{}.'
DENSE_MIXING = f'{HEAD}sampling_n_mixing.'
LORS_MIXING = 'roi_head.adaptive_mixing.'
#: Generators of the kernels, which tell the two kinds of decoders apart: the
#: official name and ours.
DENSE_KERNELS = (
    f'{DENSE_MIXING.format(0)}adaptive_mixing.parameter_generator.0.weight',
    'decoder.mixing.channel.dense.0.weight',
)
LORS_KERNELS = (
    f'{LORS_MIXING}common_parameter_generator.weight',
    'decoder.mixing.channel.shared.weight',
)
#: More hidden layers than a branch of any release has.
MAX_FCS = 10

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
#: Below `HEAD` and ``decoder.heads``: there a branch is one list of linear
#: layer, norm, ReLU, linear layer, ...
BRANCHES = '\n'.join(
    f'{branch}_fcs.{3 * i}.(weight|bias) {branch}.fcs.{i}.(dense|bias).{{}}\n'
    f'{branch}_fcs.{3 * i + 1}.(weight|bias) '
    f'{branch}.norms.{i}.{{}}.(weight|bias)'
    for branch in ('cls', 'reg')
    for i in range(MAX_FCS)
)
#: Below `DENSE_MIXING` and ``decoder.mixing``; ``both`` is the generator of
#: ``channel`` and ``spatial``.
DENSE = """
adaptive_mixing.parameter_generator.0.(weight|bias) both.dense.{}.(weight|bias)
adaptive_mixing.out_proj.(weight|bias)     out_proj.(dense|bias).{}
norm.(weight|bias)                         norm.{}.(weight|bias)
"""
#: Below `LORS_MIXING` and ``decoder.mixing``.
LORS = """
common_parameter_generator.(weight|bias)   both.shared.(weight|bias)
private_parameter_generator.{}.(weight|bias)  both.private_E.{}.(weight|bias)
m(l|r)_parameters.{}                       channel.private_(B|A).{}
s(l|r)_parameters.{}                       spatial.private_(B|A).{}
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
#: Parts of the names of the two halves of a joint generator.
KINDS = '.channel.', '.spatial.'
#: Low-rank factors of the kernels.
FACTORS = tuple(
    f'decoder.mixing{kind}private_{letter}.'
    for kind in KINDS
    for letter in 'AB'
)


class DetectorNames(Names):
    """Names of a detector's tensors.

    Args:
        lors: Whether the mixing is LORS (else it is AdaMixer's).
        num_groups: Number G of channel groups.
        group_channels: Channels of a group, C / G.
    """

    def __init__(
        self, lors: bool, num_groups: int, group_channels: int
    ) -> None:
        sampling = f'{HEAD}sampling.' if lors else DENSE_MIXING
        mixing = (LORS, LORS_MIXING) if lors else (DENSE, DENSE_MIXING)
        super().__init__(
            [
                *read_table(QUERIES),
                *read_table(NECK),
                *read_table(STAGE, HEAD, 'decoder.'),
                *read_table(BRANCHES, HEAD, 'decoder.heads.'),
                *read_table(SAMPLING, sampling, 'decoder.'),
                *read_table(*mixing, 'decoder.mixing.'),
            ]
        )
        self.groups = num_groups, -1
        self.num_channel_rows = group_channels**2

    def to_ours(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of a release under our names, split.

        Args:
            state: Tensors by their official names.
        """
        ours = {}
        for name, x in super().to_ours(state).items():
            if '.mixing.both.' in name:
                parts = x.chunk(2)
                if '.private_E.' not in name:
                    # Rows are (group, [channel mixing | spatial mixing]).
                    grouped = x.unflatten(0, self.groups).tensor_split(
                        [self.num_channel_rows], dim=1
                    )
                    parts = tuple(part.flatten(0, 1) for part in grouped)
                for kind, part in zip(KINDS, parts, strict=True):
                    # A copy: parts that share memory cannot be saved.
                    ours[name.replace('.both.', kind)] = part.clone()
            elif name.startswith(FACTORS):
                # (G * K, ., .) to (G, K, ., .)
                ours[name] = x.unflatten(0, self.groups)
            else:
                ours[name] = x
        return ours

    def to_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors under the names of a release, joined.

        Args:
            state: Tensors by our names.
        """
        joined = {}
        for name, x in state.items():
            if name.startswith(FACTORS):
                joined[name] = x.flatten(0, 1)
            elif name.startswith('decoder.mixing.channel.'):
                both = x, state[name.replace(*KINDS)]
                if '.private_E.' in name:
                    x = torch.cat(both)
                else:
                    grouped = [y.unflatten(0, self.groups) for y in both]
                    x = torch.cat(grouped, dim=1).flatten(0, 1)
                joined[name.replace('.channel.', '.both.')] = x
            elif not name.startswith('decoder.mixing.spatial.'):
                joined[name] = x
        return super().to_official(joined)


def names_of_official(shapes: Shapes) -> DetectorNames:
    """Return the names of a detector of a release.

    Args:
        shapes: Shapes by official names.

    Raises:
        KeyError: If a tensor is missing.
        UsageError: If it belongs to neither release.
    """
    kernels = find_kernels(shapes, DENSE_KERNELS[0], LORS_KERNELS[0])
    lors = kernels == LORS_KERNELS[0]
    step = f'{HEAD.format(0)}sampling' + ('' if lors else '_n_mixing')
    offsets = f'{step}.sampling_offset_generator.0.weight'
    out_proj = f'{step}.adaptive_mixing.out_proj.weight'
    if lors:
        out_proj = f'{LORS_MIXING}base_out_proj.weight'
    dims, out_in = shapes[out_proj]
    # Rows of the kernels: G (C / G)^2 + G P_in P_out; of the offsets: 3 G
    # P_in. Columns of the output projection: C P_out.
    num_spatial_rows = shapes[offsets][0] // 3 * (out_in // dims)
    width = (shapes[kernels][0] - num_spatial_rows) // dims
    return DetectorNames(lors, dims // width, width)


def find_kernels(shapes: Shapes, dense: str, lors: str) -> str:
    """Return which generator of kernels a decoder has.

    Args:
        shapes: Shapes of its tensors.
        dense: Name of AdaMixer's.
        lors: Name of that of LORS.

    Raises:
        UsageError: If it has neither.
    """
    if lors not in shapes and dense not in shapes:
        parts = sorted({name.split('.')[0] for name in shapes})
        raise UsageError(
            'a checkpoint of another architecture, or with stacks that no '
            f'release has: expected AdaMixer ({dense}) or LORS ({lors}), '
            f'found the parts {", ".join(parts) or "none"}'
        )
    return lors if lors in shapes else dense
