# SPDX-License-Identifier: Apache-2.0
"""What is compared with the recorded files of whole decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from helpers.factories import build, criterion_config
from helpers.golden_files import Comparison, Golden
from helpers.golden_modules import official_gradients
from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.postprocess import select_topk, to_instances
from lors_det.adamixer.queries import InitialQueries
from lors_det.convert.detector_names import DetectorNames


def decoder_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of our decoder, from a sidecar."""
    settings = {
        'num_classes': config['num_classes'],
        'num_stages': config['num_stages'],
        'embed_dims': config['content_dim'],
        'num_heads': config['num_heads'],
        'num_groups': config['n_groups'],
        'in_points': config['in_points'],
        'out_points': config['out_points'],
        'feedforward_channels': config['feedforward_channels'],
        'num_cls_fcs': config['num_cls_fcs'],
        'num_reg_fcs': config['num_reg_fcs'],
        'strides': config['featmap_strides'],
    }
    if config['decoder'] == 'lors':
        settings['stacks'] = {
            'mixing_kernels': {
                'mode': 'lors',
                'rank': config['kernel_sizes'],
                'num_param_groups': config['kernel_groups'],
            },
            'mixing_out_proj': {
                'mode': 'lors',
                'rank': config['mix_out_proj_ranks'],
            },
        }
    return settings


def names_of(config: Mapping[str, Any]) -> DetectorNames:
    """Which official tensor is which of ours."""
    groups = config['n_groups']
    lors = config['decoder'] == 'lors'
    return DetectorNames(lors, groups, config['content_dim'] // groups)


def load(model: nn.Module, golden: Golden) -> None:
    """Fill a model; every tensor of ours and of the file must have a peer."""
    names = names_of(golden.config)
    model.load_state_dict(names.to_ours(golden.section('state/')))


class DecoderAlone(nn.Module):
    """Initial queries and decoder, under the detector's names."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.decoder = AdaMixerDecoder(**decoder_settings(config))
        self.queries = InitialQueries(
            config['num_query'], config['content_dim']
        )


def recorded_decoder(golden: Golden) -> DecoderAlone:
    model = DecoderAlone(golden.config).to(golden.device, golden.dtype)
    load(model, golden)
    return model


def image_sizes(golden: Golden) -> Tensor:
    """(B, 2) width and height."""
    shapes = [image['img_shape'][:2] for image in golden.config['images']]
    return torch.tensor(
        [(w, h) for h, w in shapes], dtype=golden.dtype, device=golden.device
    )


def decoder_outputs(golden: Golden) -> Iterator[Comparison]:
    """Initial queries, what every stage predicts, and detections."""
    model = recorded_decoder(golden)
    with torch.no_grad():
        content, xyzr = model.queries(image_sizes(golden))
        stages = model.decoder(golden.levels(), content, xyzr)
    found = {'init_content': content, 'init_xyzr': xyzr}
    boxes = {}
    for index, stage in enumerate(stages):
        found[f'stage{index}/cls_score'] = stage.cls_logits
        found[f'stage{index}/xyzr'] = stage.xyzr
        found[f'stage{index}/content'] = stage.content
        boxes[f'stage{index}/boxes'] = stage.bboxes
    yield golden.compare('outputs', {**found, **boxes})
    yield golden.compare('boxes', boxes)

    top = select_topk(stages[-1], golden.config['max_per_img'])
    factors = [
        golden[f'in/img{i}/scale_factor'].tolist()[:2]
        for i in range(len(golden.config['images']))
    ]
    yield from detections(golden, 'det', to_instances(*top))
    yield from detections(golden, 'det_rescaled', to_instances(*top, factors))


def decoder_losses(golden: Golden) -> Iterator[Comparison]:
    """Assignments, losses and gradients of both cases of ground truth."""
    for case in ('a', 'b'):
        model = recorded_decoder(golden)
        criterion = build(criterion_config())
        feats, sizes = golden.levels(), image_sizes(golden)
        stages = model.decoder(feats, *model.queries(sizes))
        truth = ground_truth(golden, f'in/gt_{case}')
        args = [t.bboxes for t in truth], [t.labels for t in truth], sizes
        yield golden.compare(
            'equal',
            {
                f'assign_{case}/stage{s}/img{i}': match + 1
                for s, of_stage in enumerate(criterion.match(stages, *args))
                for i, match in enumerate(of_stage)
            },
        )
        losses = official_losses(criterion(stages, *args))
        yield Comparison(
            'outputs', losses, golden.section(f'out/loss_{case}/')
        )
        losses['total'].backward()
        gradients = official_gradients(model, names_of(golden.config))
        gradients.update(
            {f'in/feat{i}': feat.grad for i, feat in enumerate(feats)}
        )
        yield norms(golden, f'grad_norm/{case}/', gradients)
        full = golden.section(f'grad/{case}/')
        if full:
            yield Comparison('gradients', gradients, full)


def ground_truth(golden: Golden, prefix: str) -> list[InstanceData]:
    return [
        InstanceData(
            bboxes=golden[f'{prefix}/img{i}/boxes'],
            labels=golden[f'{prefix}/img{i}/labels'],
        )
        for i in range(len(golden.config['images']))
    ]


def official_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under the recorded names, with the sum of all that are losses."""
    total = sum(v for k, v in losses.items() if 'loss' in k)
    found = {f'stage{k[1:].replace(".", "_")}': v for k, v in losses.items()}
    return {**found, 'total': total}


def norms(
    golden: Golden, prefix: str, gradients: dict[str, Tensor]
) -> Comparison:
    return Comparison(
        'gradients',
        {name: gradient.norm() for name, gradient in gradients.items()},
        golden.section(prefix),
    )


def detections(
    golden: Golden, name: str, results: list[InstanceData]
) -> Iterator[Comparison]:
    """Labels, scores and boxes, all by descending score."""
    labels, scores, boxes = {}, {}, {}
    for i, result in enumerate(results):
        labels[f'{name}/img{i}/labels'] = result.labels
        scores[f'{name}/img{i}/scores'] = result.scores
        boxes[f'{name}/img{i}/boxes'] = result.bboxes
    yield golden.compare('equal', labels)
    yield golden.compare('outputs', {**scores, **boxes})
    yield golden.compare('boxes', boxes)
