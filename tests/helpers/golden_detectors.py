# SPDX-License-Identifier: Apache-2.0
"""What is compared with the recorded files of whole detectors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from helpers.factories import build, criterion_config
from helpers.golden_decoders import (
    decoder_settings,
    detections,
    ground_truth,
    image_sizes,
    load,
    names_of,
    norms,
    official_losses,
)
from helpers.golden_files import Comparison, Golden
from helpers.golden_modules import official_gradients
from lors_det.adamixer import AdaMixer
from lors_det.convert.models import convert, revert

#: Of the grey levels of R, G, B.
STD = [58.395, 57.12, 57.375]
ROOT = Path(__file__).resolve().parents[2]


def recorded_detector(golden: Golden) -> AdaMixer:
    config = golden.config
    backbone = config['backbone']
    assert backbone['type'] == 'ResNet'
    model = build(
        {
            'type': 'AdaMixer',
            'num_queries': config['num_query'],
            'backbone': {
                'type': 'ResNet',
                'depth': backbone['depth'],
                'base_channels': backbone['base_channels'],
                'stem_channels': backbone['stem_channels'],
                'frozen_stages': 1,
                'norm_eval': True,
            },
            'neck': {
                'type': 'SharedNormMapper',
                'in_channels': backbone['out_channels'],
                'out_channels': config['neck']['out_channels'],
            },
            'decoder': {'type': 'AdaMixerDecoder', **decoder_settings(config)},
            'criterion': criterion_config(),
            'test_cfg': {'max_per_img': config['max_per_img']},
        }
    ).to(golden.device, golden.dtype)
    load(model, golden)
    return model


def samples_of(golden: Golden, images: Iterable[int]) -> list[DetDataSample]:
    """Meta data of some images."""
    samples = []
    for i in images:
        meta = golden.section(f'in/img{i}/')
        samples.append(
            DetDataSample(
                metainfo={
                    'img_shape': tuple(meta['img_shape_hw'].tolist()),
                    'ori_shape': tuple(meta['ori_shape_hw'].tolist()),
                    'scale_factor': meta['scale_factor'].tolist()[:2],
                }
            )
        )
    return samples


def detector_outputs(golden: Golden) -> Iterator[Comparison]:
    """Features, first and last predictions, detections in three ways."""
    model = recorded_detector(golden).eval()
    batch = golden['in/batch']
    images = range(len(batch))
    with torch.no_grad():
        levels = model.backbone(batch)
        feats = model.neck(levels)
        content, xyzr = model.queries(image_sizes(golden))
        last = model.decoder(feats, content, xyzr)[-1]
        found = {f'backbone{i}': x for i, x in enumerate(levels)}
        found.update({f'neck{i}': x for i, x in enumerate(feats)})
        found.update({'init_content': content, 'init_xyzr': xyzr})
        found['final_cls_score'] = last.cls_logits
        boxes = {'final_boxes': last.bboxes}
        yield golden.compare('outputs', {**found, **boxes})
        yield golden.compare('boxes', boxes)

        for name, rescale in (('det', False), ('det_rescaled', True)):
            samples = model.predict(batch, samples_of(golden, images), rescale)
            results = [sample.pred_instances for sample in samples]
            yield from detections(golden, name, results)
        results = []
        for i in images:
            h, w = golden[f'in/img{i}/pad_shape_hw'].tolist()
            (sample,) = model.predict(
                batch[i : i + 1, :, :h, :w], samples_of(golden, [i])
            )
            results.append(sample.pred_instances)
        yield from detections(golden, 'det_single', results)


def detector_losses(golden: Golden) -> Iterator[Comparison]:
    """Losses, and the norm of every gradient."""
    model = recorded_detector(golden).train()
    batch = golden['in/batch']
    samples = samples_of(golden, range(len(batch)))
    truth = ground_truth(golden, 'in/gt')
    for sample, instances in zip(samples, truth, strict=True):
        sample.gt_instances = instances
    losses = official_losses(model.loss(batch, samples))
    yield Comparison('outputs', losses, golden.section('out/loss/'))
    losses['total'].backward()
    gradients = official_gradients(model, names_of(golden.config))
    yield norms(golden, 'grad_norm/', gradients)


def detector_inputs(golden: Golden) -> Iterator[Comparison]:
    """Our resizing, normalising and padding of the raw images."""
    found = preprocessed(golden)
    expected = golden['in/batch'].to(found)
    grey_levels = torch.tensor(STD)[:, None, None]
    yield Comparison(
        'pixels',
        {'batch': found * grey_levels},
        {'batch': expected * grey_levels},
    )


def preprocessed(golden: Golden) -> Tensor:
    """The batch that our configs' test pipeline and preprocessor make."""
    config = Config.fromfile(ROOT / 'configs/adamixer/adamixer_r50_1x_coco.py')
    init_default_scope('mmdet')
    pipeline = config.test_dataloader.dataset.pipeline
    steps = {step.type: step for step in pipeline}
    text = golden.config['preprocessing']['resize']
    scale = re.search(r'= \((\d+), (\d+)\)', text)
    steps['Resize'].scale = tuple(map(int, scale.groups()))
    resize = TRANSFORMS.build(steps['Resize'])
    pack = TRANSFORMS.build(steps['PackDetInputs'])
    data: dict[str, list[Any]] = {'inputs': [], 'data_samples': []}
    for i, image in enumerate(golden.config['images']):
        raw = golden[f'in/img{i}/uint8_bgr'].numpy()
        result = {
            'img': raw,
            'img_id': i,
            'img_path': '',
            'img_shape': raw.shape[:2],
            'ori_shape': raw.shape[:2],
        }
        packed = pack(resize(result))
        sample = packed['data_samples']
        assert sample.img_shape == tuple(image['img_shape'][:2])
        factor = image['scale_factor'][:2]
        np.testing.assert_allclose(sample.scale_factor, factor, rtol=1e-6)
        data['inputs'].append(packed['inputs'])
        data['data_samples'].append(sample)
    return build(config.model.data_preprocessor)(data)['inputs']


def detector_conversion(golden: Golden) -> Iterator[Comparison]:
    """The converter infers the sidecar's sizes, and comes back to the bit."""
    state = golden.section('state/')
    result = convert(state, 'recorded')
    assert not result.unused
    found = dict(result.model.settings['decoder'])
    expected = decoder_settings(golden.config)
    # Ranks decide over shapes, which are compared below; strides do not.
    both = found.keys() & expected.keys() - {'stacks'}
    assert len(both) == len(found) - 1
    assert {k: found[k] for k in both} == {k: expected[k] for k in both}
    assert result.model.settings['num_queries'] == golden.config['num_query']
    ours = recorded_detector(golden).state_dict()
    yield Comparison('equal', result.state, ours)
    yield Comparison('equal', revert(ours, 'ours').state, state)
