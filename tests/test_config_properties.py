# SPDX-License-Identifier: Apache-2.0
"""Any wrong setting of the model is named; any accepted one runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.factories import build, criterion_config, randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor

from lors_det.adamixer import AdaMixerDecoder, SharedNormMapper
from lors_det.adamixer.decoder import STACKS
from lors_det.lors import MODES

SCHEDULES = ('rising', 'falling')


def examples(count: int) -> settings:
    """The same examples in every run, and no time limit for one of them."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None
    )


@MODELS.register_module(force=True)
class Shrink(torch.nn.Module):
    """A backbone of any strides and channels, without parameters."""

    def __init__(self, strides: list[int], channels: list[int]) -> None:
        super().__init__()
        self.levels = list(zip(strides, channels, strict=True))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, s)[:, [0] * c] for s, c in self.levels]


def decoder_config(**changes: Any) -> dict[str, Any]:
    config = {
        'num_classes': 3,
        'num_stages': 2,
        'embed_dims': 16,
        'num_heads': 2,
        'num_groups': 2,
        'in_points': 2,
        'out_points': 3,
        'feedforward_channels': 8,
        'strides': [8, 16],
    }
    return {**config, **changes}


def neck_config(**changes: Any) -> dict[str, Any]:
    config = {'in_channels': [1, 2], 'out_channels': 16, 'num_norm_groups': 4}
    return {**config, **changes}


def detector_config(**changes: Any) -> dict[str, Any]:
    config = {
        'type': 'AdaMixer',
        'num_queries': 3,
        'data_preprocessor': {'type': 'DetDataPreprocessor'},
        'backbone': {'type': 'Shrink', 'strides': [8, 16], 'channels': [1, 2]},
        'neck': {'type': 'SharedNormMapper', **neck_config()},
        'decoder': {'type': 'AdaMixerDecoder', **decoder_config()},
        'criterion': criterion_config(),
    }
    return {**config, **changes}


# Wrong values: whole numbers of numpy are no integers to a config either.

HUGE = 10**15  # more than can be allocated: checked before it is tried
not_integers = st.one_of(
    st.text(max_size=3),
    st.floats(),
    st.none(),
    st.booleans(),
    st.sampled_from([[], [1], [1, 1, 1], [[1, 1], [1, 1]], {}]),
    st.integers(1, 3).map(np.int64),
)


def not_sizes(lowest: int = 1) -> st.SearchStrategy[Any]:
    return not_integers | st.integers(max_value=lowest - 1)


def no(*allowed: object) -> Callable[[object], bool]:
    """Whether a value is none of these, type and all."""
    return lambda value: all(
        type(value) is not type(other) or value != other for other in allowed
    )


def entries(wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A wrong value, a list that holds one, a list for another depth."""
    return st.one_of(
        wrong,
        wrong.map(lambda v: [1, v]),
        st.integers(0, 4).filter(no(2)).map(lambda n: [1] * n),
    )


def a_list_with(wrong: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """No list, an empty one, or one that holds a wrong value."""
    return st.one_of(
        wrong.filter(lambda v: not isinstance(v, list)),
        st.just([]),
        wrong.map(lambda v: [4, v]),
    )


DECODER = {
    'num_classes': not_sizes(),
    'num_stages': not_sizes(),
    'embed_dims': not_sizes() | st.integers(1, 99).filter(lambda v: v % 8),
    'num_heads': not_sizes() | st.sampled_from([3, 17, HUGE]),
    'num_groups': not_sizes() | st.sampled_from([3, 17, HUGE]),
    'in_points': not_sizes(),
    'out_points': not_sizes(),
    'feedforward_channels': not_sizes(),
    'num_cls_fcs': not_sizes(0),
    'num_reg_fcs': not_sizes(0),
    'strides': a_list_with(not_sizes()),
    'stacks': not_sizes().filter(no(None, {})),
    'with_cp': not_sizes().filter(no(True, False)) | st.just(1),
}
STACK = {
    'mode': not_sizes().filter(no(*MODES)) | st.just('LORS'),
    'rank': entries(not_sizes(0) | st.sampled_from([17, HUGE])),
    'num_param_groups': entries(not_sizes().filter(no(*SCHEDULES))),
}
NECK = {
    'in_channels': a_list_with(not_sizes()),
    'out_channels': not_sizes() | st.sampled_from([1, 6, 4321]),
    'num_norm_groups': not_sizes() | st.sampled_from([3, 17, HUGE]),
}


def assert_refused(make: Callable[[], object], key: str, value: Any) -> None:
    """One line: the key as a config has it, the value, what is right."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    text = str(caught.value)
    assert f'{key}={value!r}' in text
    assert 'expected' in text or 'is not divisible by' in text
    assert '\n' not in text


@pytest.mark.parametrize('name', DECODER)
@examples(12)
@given(st.data())
def test_wrong_decoder(name: str, data: st.DataObject) -> None:
    value = data.draw(DECODER[name])
    config = decoder_config(**{name: value})
    key = f'decoder.{name}'
    if name == 'strides' and isinstance(value, list) and value:
        key, value = f'{key}[1]', value[1]
    assert_refused(lambda: AdaMixerDecoder(**config), key, value)


@pytest.mark.parametrize('field', STACK)
@examples(30)
@given(st.data(), st.sampled_from(STACKS), st.sampled_from(list(MODES)))
def test_wrong_stack(
    field: str, data: st.DataObject, step: str, mode: str
) -> None:
    """Of any step; rank and terms also in the modes that have no use for
    them, as another mode is one option away.
    """
    value = data.draw(STACK[field])
    stack = {'mode': mode, 'rank': 1, field: value}
    config = decoder_config(stacks={step: stack})
    key = f'decoder.stacks.{step}.{field}'
    assert_refused(lambda: AdaMixerDecoder(**config), key, value)


@examples(20)
@given(
    st.sampled_from(STACKS),
    not_sizes().filter(no(None, {}))
    | st.sampled_from([{'ranks': 1}, {'mode': 'lors', 'r': 1}, {1: 2}]),
)
def test_step_that_is_no_stack(step: str, value: object) -> None:
    config = decoder_config(stacks={step: value})
    key = f'decoder.stacks.{step}'
    assert_refused(lambda: AdaMixerDecoder(**config), key, value)


@examples(10)
@given(st.text(max_size=5).filter(no(*STACKS)))
def test_unknown_step(name: str) -> None:
    for stacks in ({name: {}}, {name: {}, 'ffn': None, 3: None}):
        with pytest.raises(ValueError, match=r'decoder\.stacks has') as caught:
            AdaMixerDecoder(**decoder_config(stacks=stacks))
        assert repr(name) in str(caught.value)
        assert f'expected keys out of {list(STACKS)}' in str(caught.value)


@pytest.mark.parametrize('name', NECK)
@examples(20)
@given(st.data())
def test_wrong_neck(name: str, data: st.DataObject) -> None:
    value = data.draw(NECK[name])
    config = neck_config(**{name: value})
    key = f'neck.{name}'
    if name == 'in_channels' and isinstance(value, list) and value:
        key, value = f'{key}[1]', value[1]
    assert_refused(lambda: SharedNormMapper(**config), key, value)


not_weights = st.one_of(
    st.text(max_size=3),
    st.none(),
    st.booleans(),
    st.just([1.0]),
    st.floats(max_value=-0.1),
    st.sampled_from([float('nan'), float('inf')]),
)


@pytest.mark.parametrize('what', ['part', 'type', 'key', 'weight'])
@pytest.mark.parametrize(
    'name', ['loss_cls', 'loss_bbox', 'loss_iou', 'assigner']
)
@examples(6)
@given(data=st.data())
def test_wrong_criterion(name: str, what: str, data: st.DataObject) -> None:
    """A part that is no dict, no class, has an unknown key, or a weight that
    is none.
    """
    criterion = {'type': 'SetCriterion', **criterion_config()}
    part, key = criterion[name], f'criterion.{name}'
    if what == 'part':
        value = criterion[name] = data.draw(not_sizes())
    elif what == 'type':
        value = part['type'] = data.draw(not_sizes() | st.just('L3Loss'))
        key += '.type'
    elif what == 'key':
        value = part['gama'] = data.draw(not_sizes())
        key += '.gama'
    elif name == 'assigner':
        value = part['match_costs'][1]['weight'] = data.draw(not_weights)
        key += '.match_costs[1].weight'
    else:
        value = part['loss_weight'] = data.draw(not_weights)
        key += '.loss_weight'
    config = detector_config(criterion=criterion)
    assert_refused(lambda: build(config), key, value)


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        ('loss_cls', {'type': 'FocalLoss', 'use_sigmoid': False}),
        ('loss_cls', {'type': 'FocalLoss', 'gamma': 'two'}),
        ('loss_cls', {'type': 'FocalLoss', 'alpha': float('nan')}),
        ('loss_cls', {'type': 'L1Loss', 'reduction': 'none'}),
        ('loss_bbox', {'type': 'L1Loss', 'reduction': 'sum'}),
        ('loss_iou', {'type': 'GIoULoss', 'eps': '1'}),
        ('assigner', {'type': 'HungarianAssigner', 'match_costs': []}),
        ('assigner', {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.5,
                      'neg_iou_thr': 0.5}),
    ],
)  # fmt: skip
def test_losses_and_matcher_that_cannot_work(
    name: str, config: dict[str, Any]
) -> None:
    """Found when the model is built, not by the first batch."""
    criterion = {**criterion_config(), name: config}
    with pytest.raises(ValueError, match=f'criterion.{name}=') as caught:
        build(detector_config(criterion=criterion))
    assert repr(config) in str(caught.value)


DETECTOR = {
    'num_queries': not_sizes(),
    'test_cfg': not_sizes().filter(no(None, {})) | st.just({'max_per_im': 5}),
    'compile': not_sizes().filter(no(True, False, {})),
    'backbone': not_sizes(),
    'neck': not_sizes(),
    'decoder': not_sizes(),
    'criterion': not_sizes(),
}


@pytest.mark.parametrize('name', DETECTOR)
@examples(10)
@given(st.data())
def test_wrong_detector(name: str, data: st.DataObject) -> None:
    value = data.draw(DETECTOR[name])
    config = detector_config(**{name: value})
    key = 'model.compile' if name == 'compile' else name
    assert_refused(lambda: build(config), key, value)


@examples(12)
@given(not_sizes())
def test_wrong_number_of_detections(value: object) -> None:
    config = detector_config(test_cfg={'max_per_img': value})
    assert_refused(lambda: build(config), 'test_cfg.max_per_img', value)


@pytest.mark.parametrize(
    'options',
    [
        {'mode': 'fastest'},
        {'mode': 3},
        {'mode': 'default', 'options': {}},
        {'backend': 'none'},
        {'dynamic': 'yes'},
        {'options': 3},
        {'options': {'fast': 1}},
        {'fast': True},
        {1: 2},
    ],
    ids=str,
)
def test_wrong_options_of_compile(options: dict[Any, Any]) -> None:
    config = detector_config(compile=options)
    assert_refused(lambda: build(config), 'model.compile', options)


@pytest.mark.parametrize('name', ['backend', 'fullgraph', 'disable'])
def test_options_that_torch_does_not_check(name: str) -> None:
    config = detector_config(compile={name: 3})
    assert_refused(lambda: build(config), f'model.compile.{name}', 3)


@pytest.mark.parametrize('part', ['backbone', 'neck', 'decoder', 'criterion'])
def test_unknown_type_or_key_of_a_part(part: str) -> None:
    config = detector_config()
    config[part] = {**config[part], 'embed_dim': 8}
    assert_refused(lambda: build(config), f'{part}.embed_dim', 8)
    config[part] = {'type': 'Missing'}
    assert_refused(lambda: build(config), f'{part}.type', 'Missing')


def test_part_without_what_it_needs() -> None:
    with pytest.raises(TypeError, match=r"^decoder=.*'num_classes'"):
        build(detector_config(decoder={'type': 'AdaMixerDecoder'}))


# Right values.


def divisors(number: int) -> st.SearchStrategy[int]:
    return st.sampled_from(
        [n for n in range(1, number + 1) if number % n == 0]
    )


@st.composite
def sizes(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes of a decoder, small ones."""
    embed_dims = 8 * draw(st.integers(1, 4))
    return {
        'num_classes': draw(st.integers(1, 5)),
        'num_stages': draw(st.sampled_from([1, 2, 3])),
        'embed_dims': embed_dims,
        'num_heads': draw(divisors(embed_dims)),
        'num_groups': draw(divisors(embed_dims)),
        'in_points': draw(st.integers(1, 5)),
        'out_points': draw(st.integers(1, 5)),
        'feedforward_channels': draw(st.integers(1, 9)),
        'num_cls_fcs': draw(st.integers(0, 2)),
        'num_reg_fcs': draw(st.integers(0, 2)),
        'strides': [
            draw(st.integers(4, 32))
            for _ in range(draw(st.sampled_from([1, 2, 3])))
        ],
    }


def largest_rank(step: str, config: dict[str, Any]) -> int:
    """Smallest side of the matrices of a step."""
    c, points = config['embed_dims'], config['in_points']
    return {
        'attention': c,
        'offsets': min(c, 3 * config['num_groups'] * points),
        'mixing_kernels': min(
            c // config['num_groups'], points, config['out_points']
        ),
        'mixing_out_proj': c,
        'ffn': min(c, config['feedforward_channels']),
        'heads': min(c, config['num_classes'], 4),
    }[step]


@examples(40)
@given(sizes(), st.sampled_from(STACKS), st.sampled_from(list(MODES)))
def test_the_limit_that_is_named_is_the_limit(
    config: dict[str, Any], step: str, mode: str
) -> None:
    """A huge rank is refused with the range in which all are accepted."""

    def make(rank: int) -> None:
        stacks = {step: {'mode': mode, 'rank': rank}}
        AdaMixerDecoder(**config, stacks=stacks)

    with pytest.raises(ValueError, match=r'\.rank=10{15}: ') as caught:
        make(HUGE)
    found = re.search(r'values from (\d) to (\d+)', str(caught.value))
    assert found
    lowest, highest = map(int, found.groups())
    assert lowest == (mode == 'private')
    assert highest == largest_rank(step, config)
    make(lowest)
    make(highest)
    assert_refused(
        lambda: make(highest + 1), f'decoder.stacks.{step}.rank', highest + 1
    )


@st.composite
def stack_configs(
    draw: st.DrawFn, depth: int, highest: int
) -> dict[str, Any] | None:
    """Where the weights of a step come from: any mode, ranks, terms."""
    if draw(st.integers(0, 3)) == 0:
        return None
    mode = draw(st.sampled_from(list(MODES)))
    rank = st.integers(1 if mode == 'private' else 0, highest)
    terms = st.integers(1, 3)
    return {
        'mode': mode,
        'rank': draw(
            rank | st.lists(rank, min_size=depth, max_size=depth)
        ),
        'num_param_groups': draw(
            st.one_of(
                terms,
                st.lists(terms, min_size=depth, max_size=depth),
                st.sampled_from(SCHEDULES),
            )
        ),
    }  # fmt: skip


@st.composite
def detectors(draw: st.DrawFn) -> dict[str, Any]:
    """A detector, all of its settings drawn."""
    decoder = draw(sizes())
    decoder['stacks'] = {
        step: draw(
            stack_configs(decoder['num_stages'], largest_rank(step, decoder))
        )
        for step in STACKS
    }
    decoder['with_cp'] = draw(st.booleans())
    strides, width = decoder['strides'], decoder['embed_dims']
    channels = [draw(st.integers(1, 3)) for _ in strides]
    limit = draw(st.none() | st.integers(1, 50))
    return detector_config(
        num_queries=draw(st.integers(1, 5)),
        backbone={'type': 'Shrink', 'strides': strides, 'channels': channels},
        neck={
            'type': 'SharedNormMapper',
            'in_channels': channels,
            'out_channels': width,
            'num_norm_groups': draw(divisors(width)),
        },
        decoder={'type': 'AdaMixerDecoder', **decoder},
        test_cfg={} if limit is None else {'max_per_img': limit},
        compile=draw(st.sampled_from([False, {'disable': True}])),
    )


def batch(num_classes: int) -> dict[str, Any]:
    """Two images, the first with two boxes, the second with none."""
    images, samples = [], []
    for height, width, num_boxes in ((64, 96, 2), (70, 64, 0)):
        images.append(torch.rand(3, height, width))
        sample = DetDataSample(
            metainfo={'img_shape': (height, width), 'scale_factor': (1.0, 1.0)}
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 6, 50, 40], [0, 0, 9, 60]])[:num_boxes],
            labels=torch.tensor([0, num_classes - 1])[:num_boxes],
        )
        samples.append(sample)
    return {'inputs': images, 'data_samples': samples}


@examples(30)
@given(detectors())
def test_what_is_accepted_trains_and_predicts(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(config)
    randomise(model)
    num_classes = config['decoder']['num_classes']
    data = model.data_preprocessor(batch(num_classes), True)
    losses = model(**data, mode='loss')
    assert len(losses) == 4 * config['decoder']['num_stages']
    assert all(value.isfinite() for value in losses.values())
    sum(value for name, value in losses.items() if 'loss' in name).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    model.eval()
    num_queries = config['num_queries']
    limit = config['test_cfg'].get('max_per_img', num_queries)
    with torch.no_grad():
        results = model.test_step(batch(num_classes))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert len(found) == min(limit, num_queries * num_classes)
        assert found.bboxes.isfinite().all()
        assert found.scores.gt(0).all()
        assert found.scores.lt(1).all()
        assert found.labels.lt(num_classes).all()


def test_channels_of_another_backbone() -> None:
    """What only the first batch can tell names the setting too."""
    backbone = {'type': 'Shrink', 'strides': [8, 16], 'channels': [2, 2]}
    model = build(detector_config(backbone=backbone))
    with pytest.raises(
        ValueError,
        match=r'neck\.in_channels=\[1, 2\]: the backbone gives \[2, 2\]',
    ):
        model(**model.data_preprocessor(batch(3), True), mode='loss')
