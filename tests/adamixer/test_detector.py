# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from helpers.factories import build, decoder_config, detector_config, randomise
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from lors_det.adamixer import AdaMixer


def batch(
    *counts: int, sizes: tuple = ((64, 96), (60, 80))
) -> dict[str, list[Any]]:
    """Raw images of different sizes with some random boxes each."""
    rng = np.random.default_rng(0)
    inputs, samples = [], []
    for num_boxes, (h, w) in zip(counts, sizes, strict=False):
        image = rng.integers(0, 256, (3, h, w), dtype=np.uint8)
        inputs.append(torch.from_numpy(image))
        corners = torch.rand(num_boxes, 2, 2).sort(1).values
        boxes = corners.flatten(1) * torch.tensor([w, h, w, h])
        sample = DetDataSample(
            metainfo={
                'img_shape': (h, w),
                'ori_shape': (2 * h, 2 * w),
                'scale_factor': (0.5, 0.5),
            }
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(0, 5, (num_boxes,))
        )
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}


def losses_of(model: AdaMixer, data: dict) -> dict[str, torch.Tensor]:
    return model(**model.data_preprocessor(data, True), mode='loss')


def total_of(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(v for k, v in losses.items() if 'loss' in k)


def test_boxes_in_original_or_resized_pixels() -> None:
    model = build(detector_config()).eval()
    data = model.data_preprocessor(batch(0))
    with torch.no_grad():
        original, resized = (
            model.predict(*data.values(), rescale)[0].pred_instances.bboxes
            for rescale in (True, False)
        )
        torch.testing.assert_close(original, 2 * resized)


def test_batched_equals_single_without_the_shared_norm() -> None:
    """Equal where nothing looks at the padding: images of one size, and the
    neck's norm replaced by none.
    """
    model = build(detector_config()).eval().double()
    randomise(model)
    model.neck.norm = torch.nn.Identity()
    data = batch(0, 0, sizes=((64, 96), (64, 96)))
    with torch.no_grad():
        inputs = model.data_preprocessor(data)['inputs'].double()
        many = model._forward(inputs)
        for image in range(2):
            one = model._forward(inputs[image : image + 1])
            for found, expected in zip(one, many, strict=True):
                torch.testing.assert_close(found, expected[image : image + 1])


def test_geometry_and_losses_stay_float32_under_autocast() -> None:
    model = build(detector_config())
    randomise(model)
    data = model.data_preprocessor(batch(3, 2), True)
    exact = model(**data, mode='loss')
    seen = []
    model.decoder.attention.in_proj.register_forward_hook(
        lambda module, args, result: seen.append(result.dtype)
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        stages = model.decode(
            data['inputs'], torch.tensor([[96.0, 64], [80, 60]])
        )
        losses = model(**data, mode='loss')
    assert set(seen) == {torch.bfloat16}  # autocast was at work
    for stage in stages:
        for x in (stage.cls_logits, stage.bboxes, stage.xyzr):
            assert x.dtype == torch.float32
    for name, value in losses.items():
        assert value.dtype == torch.float32
        if name.startswith('s0.loss'):
            torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0)
    total_of(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def of_decoder(**changes: Any) -> dict[str, Any]:
    return {'type': 'AdaMixerDecoder', **decoder_config(**changes)}


NECK = {'type': 'SharedNormMapper', 'in_channels': [8, 16, 32, 64]}


@pytest.mark.parametrize('num_levels', [4, 5])
def test_a_neck_with_more_levels_than_its_backbone(num_levels: int) -> None:
    """Levels are counted by what the neck gives."""
    config = detector_config(
        neck={**NECK, 'type': 'FPN', 'out_channels': 32, 'num_outs': 5},
        decoder=of_decoder(strides=[4, 8, 16, 32, 64][:num_levels]),
    )
    if num_levels == 5:
        assert losses_of(build(config), batch(1))['s0.loss_cls'].isfinite()
    else:
        with pytest.raises(ValueError, match='the neck gives 5 levels'):
            build(config)


def test_compiled() -> None:
    """Compiled parts give equal losses; of other sizes, see test_decoder."""
    config = {'decoder': of_decoder(num_stages=1, stacks={})}
    plain = build(detector_config(**config))
    randomise(plain)
    config['compile'] = {'backend': 'eager'}
    compiled = build(detector_config(**config))
    compiled.load_state_dict(plain.state_dict())
    copy.deepcopy(compiled)  # as for an exponential moving average
    data = batch(3, 2)
    found = losses_of(compiled, data)
    torch.testing.assert_close(found, losses_of(plain, data))
    total_of(found).backward()
    assert all(p.grad is not None for p in compiled.decoder.parameters())
