# SPDX-License-Identifier: Apache-2.0
"""What an official checkpoint is: release and sizes, from its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lors_det.convert.backbone import backbone_config
from lors_det.convert.official import DecoderLayout
from lors_det.convert.shapes import Shapes
from lors_det.errors import UsageError

HEAD = 'roi_head.bbox_head'
LORS = 'roi_head.adaptive_mixing'
LORS_GENERATOR = f'{LORS}.common_parameter_generator.weight'
DENSE = f'{HEAD}.0.sampling_n_mixing'
DENSE_GENERATOR = f'{DENSE}.adaptive_mixing.parameter_generator.0.weight'
OFFSETS = 'sampling_offset_generator.0.weight'


@dataclass(frozen=True)
class DetectorLayout:
    """A detector of one of the releases.

    Args:
        decoder: What the names of the decoder's tensors depend on.
        model: Settings that differ from this project's AdaMixer R50.
    """

    decoder: DecoderLayout
    model: dict[str, Any]

    @property
    def release(self) -> str:
        """Name of the release."""
        return 'LORS' if self.decoder.lors else 'AdaMixer'


def detector_layout(shapes: Shapes) -> DetectorLayout:
    """Recognise a detector by its official names and shapes.

    Args:
        shapes: Shapes of the checkpoint.

    Raises:
        UsageError: If it belongs to neither release, or lacks a tensor.
    """
    _check_release(shapes)
    decoder = _decoder_layout(shapes)
    num_queries, dims = shapes['rpn_head.init_content_features.weight']
    num_levels = shapes.count('neck.lateral_convs.{}.conv.weight')
    head = f'{HEAD}.0'
    settings: dict[str, Any] = {
        'num_classes': shapes[f'{head}.fc_cls.weight'][0],
        'num_stages': decoder.num_stages,
        'embed_dims': dims,
        'num_heads': shapes[f'{head}.iof_tau'][0],
        'num_groups': decoder.num_groups,
        'in_points': decoder.in_points,
        'out_points': decoder.out_points,
        'feedforward_channels': shapes[f'{head}.ffn.layers.0.0.weight'][0],
        'num_cls_fcs': decoder.num_cls_fcs,
        'num_reg_fcs': decoder.num_reg_fcs,
    }
    # Nothing of the base's stacks holds.
    settings['stacks'] = {'_delete_': True}
    if decoder.lors:
        settings['stacks'].update(_lors_stacks(shapes, decoder))
    neck = {
        'in_channels': tuple(
            shapes[f'neck.lateral_convs.{level}.conv.weight'][1]
            for level in range(num_levels)
        ),
        'out_channels': dims,
    }
    model = {
        'num_queries': num_queries,
        'backbone': backbone_config(shapes),
        'neck': neck,
        'decoder': settings,
    }
    return DetectorLayout(decoder, model)


def _check_release(shapes: Shapes) -> None:
    if LORS_GENERATOR in shapes or DENSE_GENERATOR in shapes:
        return
    if any(name.startswith('decoder.mixing.') for name in shapes):
        raise UsageError(
            f'{shapes.source} is a checkpoint of this project already; '
            '--to-official converts it to the names of the releases'
        )
    parts = sorted({name.split('.')[0] for name in shapes})
    raise UsageError(
        f'{shapes.source} is a checkpoint of another architecture: expected '
        f'AdaMixer ({DENSE}.*) or LORS ({LORS}.*), found the parts '
        f'{", ".join(parts) or "none"}'
    )


def _decoder_layout(shapes: Shapes) -> DecoderLayout:
    dims = shapes['rpn_head.init_content_features.weight'][1]
    lors = LORS_GENERATOR in shapes
    if lors:
        out_dims = shapes[f'{LORS}.base_out_proj.weight'][1]
        width = shapes[f'{LORS}.ml_parameters.0'][1]
        in_points = shapes[f'{LORS}.sr_parameters.0'][2]
    else:
        out_dims = shapes[f'{DENSE}.adaptive_mixing.out_proj.weight'][1]
        # Rows of the generator: G (C/G)^2 + G P_out P_in; of the offset
        # generator: 3 G P_in.
        points = shapes[f'{DENSE}.{OFFSETS}'][0] // 3
        rows = shapes[DENSE_GENERATOR][0] - out_dims // dims * points
        width = rows // dims
        in_points = points * width // dims
    if not 0 < width <= dims:
        name = LORS_GENERATOR if lors else DENSE_GENERATOR
        raise UsageError(
            f'{shapes.source}: {name} {shapes[name]} fits no number of '
            f'groups of {dims} channels'
        )
    return DecoderLayout(
        num_stages=shapes.count(HEAD + '.{}.fc_cls.weight'),
        num_groups=dims // width,
        width=width,
        in_points=in_points,
        out_points=out_dims // dims,
        lors=lors,
        # A branch is a list of linear layers, norms and ReLUs in turn.
        num_cls_fcs=shapes.count(f'{HEAD}.0.cls_fcs.{{}}.weight', step=3),
        num_reg_fcs=shapes.count(f'{HEAD}.0.reg_fcs.{{}}.weight', step=3),
    )


def _lors_stacks(shapes: Shapes, layout: DecoderLayout) -> dict[str, Any]:
    stages = range(layout.num_stages)
    left = [shapes[f'{LORS}.ml_parameters.{i}'] for i in stages]
    out = [shapes[f'{LORS}.out_weight_add_A.{i}'][0] for i in stages]
    return {
        'mixing_kernels': {
            'mode': 'lors',
            'rank': _short([shape[2] for shape in left]),
            'num_param_groups': _short(
                [shape[0] // layout.num_groups for shape in left]
            ),
        },
        'mixing_out_proj': {'mode': 'lors', 'rank': _short(out)},
    }


def _short(values: list[int]) -> int | list[int]:
    """One value where all are equal."""
    return values[0] if len(set(values)) == 1 else values


def layout_of_ours(state: Mapping[str, Tensor], source: str) -> DecoderLayout:
    """What the names of a decoder of ours would be in the releases.

    Args:
        state: Our tensors by name.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If no release has such a decoder, or a tensor is missing.
    """
    shapes = Shapes(state, source)
    mixing = 'decoder.mixing'
    lors = f'{mixing}.channel.shared.weight' in shapes
    if not lors and f'{mixing}.channel.dense.0.weight' not in shapes:
        raise UsageError(
            f'{source} has no decoder that a release has: expected '
            f'{mixing}.channel.shared.weight (LORS) or '
            f'{mixing}.channel.dense.0.weight (AdaMixer)'
        )
    generator = 'shared' if lors else 'dense.0'
    dims = shapes['queries.content'][1]
    width = shapes[f'{mixing}.channel.{generator}.weight'][0] // dims
    num_groups = dims // width
    points = shapes['decoder.sampling.offsets.dense.0'][0] // 3
    rows = shapes[f'{mixing}.spatial.{generator}.weight'][0]
    return DecoderLayout(
        num_stages=shapes.count('decoder.attention.iof_tau.{}'),
        num_groups=num_groups,
        width=width,
        in_points=points // num_groups,
        out_points=rows // points,
        lors=lors,
        num_cls_fcs=shapes.count('decoder.heads.cls.fcs.{}.dense.0'),
        num_reg_fcs=shapes.count('decoder.heads.reg.fcs.{}.dense.0'),
    )
