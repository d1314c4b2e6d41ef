# SPDX-License-Identifier: Apache-2.0
"""What is compared with the recorded files of single modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.golden_files import Comparison, Golden
from lors_det.adamixer.attention import IOF_EPS, QueryAttention
from lors_det.adamixer.geometry import (
    decode_xyzr,
    intersection_over_foreground,
    position_embedding,
    refine_xyzr,
)
from lors_det.adamixer.heads import FeedForward, PredictionHeads
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.adamixer.sampling import (
    AdaptiveSampling,
    Pyramid,
    level_weights,
    sample_3d,
)
from lors_det.convert.detector_names import DetectorNames


class Recorded(nn.Module):
    """Modules of one recorded file, with the official weights.

    Args:
        golden: The file.
        prefix: Where in a detector's names the recorded modules are.
        lors: Whether the names are those of LORS.
        steps: The modules, by their name in our decoder.
    """

    def __init__(
        self,
        golden: Golden,
        prefix: str,
        lors: bool = True,
        **steps: nn.Module,
    ) -> None:
        super().__init__()
        self.golden = golden
        self.prefix = prefix
        self.decoder = nn.ModuleDict(steps)
        config = golden.config
        dim = config.get('in_dim') or config.get('content_dim')
        groups = config['n_groups']
        self.names = DetectorNames(lors, groups, dim // groups)
        self.to(golden.device, golden.dtype)
        state = golden.section('state/')
        state = {prefix + name: x for name, x in state.items()}
        missing, unexpected = self.load_state_dict(
            self.names.to_ours(state), strict=False
        )
        assert not unexpected
        untouched = {f'decoder.mixing.norm.0.{k}' for k in ('weight', 'bias')}
        assert set(missing) <= untouched, missing

    def compare(
        self, found: dict[str, Tensor], inputs: dict[str, Tensor]
    ) -> Iterator[Comparison]:
        """Outputs, and the gradients of inputs and parameters."""
        golden = self.golden
        yield golden.compare('outputs', found)
        scalar(golden, found).backward()
        gradients = {f'in/{name}': x.grad for name, x in inputs.items()}
        theirs = official_gradients(self, self.names)
        gradients.update(
            {k.removeprefix(self.prefix): v for k, v in theirs.items()}
        )
        yield Comparison('gradients', gradients, golden.section('grad/'))


def official_gradients(
    model: nn.Module, names: DetectorNames
) -> dict[str, Tensor]:
    """Gradients of the parameters that have one, by official name."""
    ours = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return names.to_official(ours)


def scalar(golden: Golden, outputs: dict[str, Tensor]) -> Tensor:
    """The recorded scalar, which all gradients are gradients of."""
    weights = golden.section('in/loss_weight/')
    return sum((outputs[name] * w).sum() for name, w in weights.items())


def inputs_of(golden: Golden, *names: str) -> dict[str, Tensor]:
    return {name: golden[f'in/{name}'].requires_grad_() for name in names}


def sampling(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    feats = golden.levels()
    recorded = golden['in/sample_points'].requires_grad_()
    points = recorded.squeeze(2).unflatten(2, (config['n_groups'], -1))

    pyramid = Pyramid.build(feats, config['featmap_strides'])
    sampled = sample_3d(pyramid, points)
    weights = level_weights(recorded[..., 2], pyramid.strides)

    yield golden.compare(
        'outputs', {'sampled': sampled, 'level_weight': weights}
    )
    scalar(golden, {'sampled': sampled}).backward()
    found = {f'in/feat{i}': feat.grad for i, feat in enumerate(feats)}
    found['in/sample_points'] = recorded.grad
    yield Comparison('gradients', found, golden.section('grad/'))


def sampling_of(
    config: dict, num_stages: int, in_points: int
) -> AdaptiveSampling:
    return AdaptiveSampling(
        num_stages, config['content_dim'], config['n_groups'], in_points
    )


def adaptive_sampling(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    module = sampling_of(config, 1, config['in_points'])
    prefix = 'roi_head.bbox_head.0.sampling.'
    model = Recorded(golden, prefix, sampling=module)
    feats = golden.levels()
    inputs = inputs_of(golden, 'query_xyzr', 'query_content')
    xyzr, content = inputs.values()
    pyramid = Pyramid.build(feats, config['featmap_strides'])
    points = module.points(content, xyzr, 0)
    found = {
        'sampled': module(pyramid, content, xyzr, 0),
        'offset': module.offsets(content, 0),
        'sample_points': points.flatten(2, 3)[:, :, None],
    }
    levels = {f'feat{i}': feat for i, feat in enumerate(feats)}
    yield from model.compare(found, {**levels, **inputs})


def initial_grid(golden: Golden) -> Iterator[Comparison]:
    """Initial offsets where P_in is a square number: nothing random."""
    found, expected = {}, {}
    for name, bias in golden.section('init/').items():
        in_points = int(name.split('/')[0].removeprefix('in_points'))
        offsets = sampling_of(golden.config, 2, in_points).offsets
        for stage in range(2):
            weight = offsets.weight(stage).detach()
            found[f'{name} bias {stage}'] = offsets.bias[stage].detach()
            expected[f'{name} bias {stage}'] = bias
            found[f'{name} weight {stage}'] = weight
            expected[f'{name} weight {stage}'] = torch.zeros_like(weight)
    yield Comparison('outputs', found, expected)


def mixing_of(config: dict, num_stages: int, **stacks: object):
    return AdaptiveMixing(
        num_stages, config['query_dim'], config['n_groups'],
        config['in_points'], config['out_points'], **stacks,
    )  # fmt: skip


def mixing_dense(golden: Golden) -> Iterator[Comparison]:
    module = mixing_of(golden.config, 1)
    prefix = 'roi_head.bbox_head.0.sampling_n_mixing.adaptive_mixing.'
    model = Recorded(golden, prefix, lors=False, mixing=module)
    inputs = inputs_of(golden, 'x', 'query')
    x, query = inputs.values()
    found = {'out': query + module.mix(x, query, 0)}
    yield from model.compare(found, inputs)


def mixing_lors(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    num_stages = config['num_stages']
    kernels = {
        'mode': 'lors',
        'rank': config['kernel_sizes'],
        'num_param_groups': config['kernel_groups'],
    }
    out_proj = {'mode': 'lors', 'rank': config['mix_out_proj_ranks']}
    module = mixing_of(config, num_stages, kernels=kernels, out_proj=out_proj)
    model = Recorded(golden, 'roi_head.adaptive_mixing.', mixing=module)
    inputs = inputs_of(golden, 'x', 'query')
    found = {
        f'stage{stage}': module(*inputs.values(), stage)
        for stage in range(num_stages)
    }
    yield from model.compare(found, inputs)


def stage_attention(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    dim = config['content_dim']
    num_fcs = config.get('num_cls_fcs', 1), config.get('num_reg_fcs', 1)
    steps = {
        'attention': QueryAttention(1, dim, config['num_heads']),
        'sampling': sampling_of(config, 1, config['in_points']),
        'ffn': FeedForward(1, dim, config['feedforward_channels']),
        'heads': PredictionHeads(1, dim, config['num_classes'], *num_fcs),
    }
    model = Recorded(golden, 'roi_head.bbox_head.0.', **steps)
    inputs = inputs_of(golden, 'query_xyzr', 'query_content', 'mixed_content')
    xyzr, query, mixed = inputs.values()

    boxes = decode_xyzr(xyzr)
    iof = intersection_over_foreground(boxes)
    content = steps['ffn'](mixed, 0)
    cls_score, delta = steps['heads'](content, 0)
    refined = refine_xyzr(xyzr, delta)
    found = {
        'decoded_boxes_in': boxes,
        'position_embedding': position_embedding(xyzr, dim),
        'iof': iof,
        'log_iof': (iof + IOF_EPS).log(),
        'attended_content': steps['attention'](query, xyzr, 0),
        'cls_score': cls_score,
        'delta_xyzr': delta,
        'content_out': content,
        'new_xyzr': refined,
        'new_boxes': decode_xyzr(refined),
    }
    yield from model.compare(found, inputs)
