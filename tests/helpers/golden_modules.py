# SPDX-License-Identifier: Apache-2.0
"""What is compared with the recorded files of single modules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.golden_files import Comparison, Golden
from lors_det.adamixer.attention import (
    IOF_EPS,
    QueryAttention,
)
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
from lors_det.convert.detector_names import DecoderSizes, decoder_renames
from lors_det.convert.tensors import Rename, to_official, to_ours


class Recorded(nn.Module):
    """Modules that load official tensors and give official gradients.

    Args:
        renames: The names, for tensors of a whole detector.
        prefix: Where in a detector's names the recorded module sits.
        steps: The modules, by their name in our decoder.
    """

    def __init__(
        self, renames: list[Rename], prefix: str, **steps: nn.Module
    ) -> None:
        super().__init__()
        self.renames = renames
        self.prefix = prefix
        self.decoder = nn.ModuleDict(steps)

    def load_official(self, state: dict[str, Tensor]) -> None:
        state = {self.prefix + name: x for name, x in state.items()}
        ours = to_ours(state, self.renames)
        missing, unexpected = self.load_state_dict(ours, strict=False)
        assert not unexpected
        untouched = {'decoder.mixing.norm.0.weight'}
        untouched.add('decoder.mixing.norm.0.bias')
        assert set(missing) <= untouched, missing

    def official_gradients(self) -> dict[str, Tensor]:
        ours = {
            name: parameter.grad
            for name, parameter in self.named_parameters()
            if parameter.grad is not None
        }
        theirs = to_official(ours, self.renames)
        return {k.removeprefix(self.prefix): v for k, v in theirs.items()}


def sizes_of(config: dict, lors: bool, num_stages: int) -> DecoderSizes:
    dim = config.get('in_dim') or config.get('content_dim')
    return DecoderSizes(
        num_stages=num_stages,
        num_groups=config['n_groups'],
        group_channels=dim // config['n_groups'],
        lors=lors,
        num_cls_fcs=config.get('num_cls_fcs', 1),
        num_reg_fcs=config.get('num_reg_fcs', 1),
    )


def scalar(golden: Golden, outputs: dict[str, Tensor]) -> Tensor:
    """The recorded scalar, which all gradients are gradients of."""
    weights = golden.section('in/loss_weight/')
    return sum((outputs[name] * w).sum() for name, w in weights.items())


def sampling(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    feats = golden.levels()
    recorded = golden['in/sample_points'].requires_grad_()
    points = recorded.squeeze(2).unflatten(2, (config['n_groups'], -1))

    pyramid = Pyramid.build(feats, config['featmap_strides'])
    sampled = sample_3d(pyramid, points)
    weights = level_weights(recorded[..., 2], pyramid.strides)

    yield Comparison(
        'outputs',
        {'sampled': sampled, 'level_weight': weights},
        {k: golden[f'out/{k}'] for k in ('sampled', 'level_weight')},
    )
    scalar(golden, {'sampled': sampled}).backward()
    found = {f'in/feat{i}': feat.grad for i, feat in enumerate(feats)}
    found['in/sample_points'] = recorded.grad
    yield Comparison('gradients', found, golden.section('grad/'))


def adaptive_sampling(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    module = AdaptiveSampling(
        1,
        config['content_dim'],
        config['n_groups'],
        config['in_points'],
    )
    renames = list(decoder_renames(sizes_of(config, True, 1)))
    model = Recorded(
        renames, 'roi_head.bbox_head.0.sampling.', sampling=module
    ).to(golden.dtype)
    model.load_official(golden.section('state/'))
    feats = golden.levels()
    xyzr = golden['in/query_xyzr'].requires_grad_()
    content = golden['in/query_content'].requires_grad_()
    pyramid = Pyramid.build(feats, config['featmap_strides'])

    found = {
        'sampled': module(pyramid, content, xyzr, 0),
        'offset': module.offsets(content, 0),
        'sample_points': module.points(content, xyzr, 0).flatten(2, 3)[
            :, :, None
        ],
    }
    expected = {name: golden[f'out/{name}'] for name in found}
    yield Comparison('outputs', found, expected)

    scalar(golden, found).backward()
    gradients = {f'in/feat{i}': feat.grad for i, feat in enumerate(feats)}
    gradients['in/query_xyzr'] = xyzr.grad
    gradients['in/query_content'] = content.grad
    gradients.update(model.official_gradients())
    yield Comparison('gradients', gradients, golden.section('grad/'))


def initial_grid(golden: Golden) -> Iterator[Comparison]:
    """Initial offsets where P_in is a square number: nothing random."""
    config = golden.config
    found, expected = {}, {}
    for name, bias in golden.section('init/').items():
        in_points = int(name.split('/')[0].removeprefix('in_points'))
        module = AdaptiveSampling(
            2,
            config['content_dim'],
            config['n_groups'],
            in_points,
        )
        for stage in range(2):
            offsets = module.offsets
            found[f'{name} bias {stage}'] = offsets.bias[stage].detach()
            expected[f'{name} bias {stage}'] = bias
            weight = offsets.weight(stage).detach()
            found[f'{name} weight {stage}'] = weight
            expected[f'{name} weight {stage}'] = torch.zeros_like(weight)
    yield Comparison('outputs', found, expected)


def mixing_dense(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    module = AdaptiveMixing(
        1,
        config['query_dim'],
        config['n_groups'],
        config['in_points'],
        config['out_points'],
    )
    prefix = 'roi_head.bbox_head.0.sampling_n_mixing.adaptive_mixing.'
    renames = list(decoder_renames(sizes_of(config, False, 1)))
    model = Recorded(renames, prefix, mixing=module).to(golden.dtype)
    model.load_official(golden.section('state/'))
    x = golden['in/x'].requires_grad_()
    query = golden['in/query'].requires_grad_()

    found = {'out': query + module.mix(x, query, 0)}
    yield Comparison('outputs', found, {'out': golden['out/out']})
    scalar(golden, found).backward()
    gradients = {'in/x': x.grad, 'in/query': query.grad}
    gradients.update(model.official_gradients())
    yield Comparison('gradients', gradients, golden.section('grad/'))


def mixing_lors(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    num_stages = config['num_stages']
    module = AdaptiveMixing(
        num_stages,
        config['query_dim'],
        config['n_groups'],
        config['in_points'],
        config['out_points'],
        kernels={
            'mode': 'lors',
            'rank': config['kernel_sizes'],
            'num_param_groups': config['kernel_groups'],
        },
        out_proj={'mode': 'lors', 'rank': config['mix_out_proj_ranks']},
    )
    renames = list(decoder_renames(sizes_of(config, True, num_stages)))
    model = Recorded(renames, 'roi_head.adaptive_mixing.', mixing=module)
    model = model.to(golden.dtype)
    model.load_official(golden.section('state/'))
    x = golden['in/x'].requires_grad_()
    query = golden['in/query'].requires_grad_()

    found = {
        f'stage{stage}': module(x, query, stage) for stage in range(num_stages)
    }
    expected = {name: golden[f'out/{name}'] for name in found}
    yield Comparison('outputs', found, expected)
    scalar(golden, found).backward()
    gradients = {'in/x': x.grad, 'in/query': query.grad}
    gradients.update(model.official_gradients())
    yield Comparison('gradients', gradients, golden.section('grad/'))


def stage_attention(golden: Golden) -> Iterator[Comparison]:
    config = golden.config
    dim = config['content_dim']
    attention = QueryAttention(1, dim, config['num_heads'])
    ffn = FeedForward(1, dim, config['feedforward_channels'])
    num_fcs = config.get('num_cls_fcs', 1), config.get('num_reg_fcs', 1)
    heads = PredictionHeads(1, dim, config['num_classes'], *num_fcs)
    sampling = AdaptiveSampling(
        1, dim, config['n_groups'], config['in_points']
    )
    model = Recorded(
        list(decoder_renames(sizes_of(config, True, 1))),
        'roi_head.bbox_head.0.',
        attention=attention,
        sampling=sampling,
        ffn=ffn,
        heads=heads,
    ).to(golden.dtype)
    model.load_official(golden.section('state/'))
    inputs = {
        name: golden[f'in/{name}'].requires_grad_()
        for name in ('query_xyzr', 'query_content', 'mixed_content')
    }
    xyzr = inputs['query_xyzr']

    boxes = decode_xyzr(xyzr)
    iof = intersection_over_foreground(boxes)
    content = ffn(inputs['mixed_content'], 0)
    cls_score, delta = heads(content, 0)
    refined = refine_xyzr(xyzr, delta)
    found = {
        'decoded_boxes_in': boxes,
        'position_embedding': position_embedding(xyzr, dim),
        'iof': iof,
        'log_iof': (iof + IOF_EPS).log(),
        'attended_content': attention(inputs['query_content'], xyzr, 0),
        'cls_score': cls_score,
        'delta_xyzr': delta,
        'content_out': content,
        'new_xyzr': refined,
        'new_boxes': decode_xyzr(refined),
    }
    expected = {name: golden[f'out/{name}'] for name in found}
    yield Comparison('outputs', found, expected)

    scalar(golden, found).backward()
    gradients = {f'in/{name}': x.grad for name, x in inputs.items()}
    gradients.update(model.official_gradients())
    yield Comparison('gradients', gradients, golden.section('grad/'))
