# SPDX-License-Identifier: Apache-2.0
"""Any wrong setting of the model is named; any accepted one runs."""

from __future__ import annotations

import math
import re
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

from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.settings import STACKS
from lors_det.cli.boundary import OneLineErrors
from lors_det.lors import MODES

SCHEDULES = ('rising', 'falling')
RIGHT = (
    'expected|is not divisible by|did you mean|no .* of this name'
    '|cfg should be a dict|must contain the key "type"'
)


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


def detector_config(**changes: Any) -> dict[str, Any]:
    config = {
        'type': 'AdaMixer',
        'num_queries': 3,
        'data_preprocessor': {'type': 'DetDataPreprocessor'},
        'backbone': {'type': 'Shrink', 'strides': [8, 16], 'channels': [1, 2]},
        'neck': {
            'type': 'SharedNormMapper',
            'in_channels': [1, 2],
            'out_channels': 16,
            'num_norm_groups': 4,
        },
        'decoder': {
            'type': 'AdaMixerDecoder',
            'num_classes': 3,
            'num_stages': 2,
            'embed_dims': 16,
            'num_heads': 2,
            'num_groups': 2,
            'in_points': 2,
            'out_points': 3,
            'feedforward_channels': 8,
            'strides': [8, 16],
        },
        'criterion': {'type': 'SetCriterion', **criterion_config()},
    }
    return {**config, **changes}


# Wrong values. Whole numbers of numpy are no integers to a config either.

HUGE = 10**15  # more than can be allocated: checked before it is tried
NOT_COUNTS = [
    '', '3', 1.5, math.nan, None, True, [], [1], [[1, 1], [1, 1]], {},
    np.int64(3), -1,
]  # fmt: skip
NOT_SIZES = [*NOT_COUNTS, 0]
NOT_LISTS = [v for v in NOT_SIZES if not isinstance(v, list)] + [[]]
#: A list of configs is built as a sequence of modules.
NOT_CONFIGS = [v for v in NOT_SIZES if not isinstance(v, list)]
NOT_DICTS = [v for v in NOT_SIZES if v not in (None, {})]
NOT_FLAGS = [v for v in NOT_SIZES if v is not True]
NOT_WEIGHTS = ['1', None, True, [1.0], -0.1, math.nan, math.inf]
LOSSES = ('loss_cls', 'loss_bbox', 'loss_iou')


def per_stage(wrong: list[Any]) -> list[Any]:
    """A wrong value, a list that holds one, a list for another depth."""
    return [*wrong, *([1, value] for value in wrong), [], [1], [1, 1, 1]]


#: By the name of the setting, as messages have it.
WRONG: dict[str, list[Any]] = {
    'num_queries': NOT_SIZES,
    'test_cfg': [*NOT_DICTS, {'max_per_im': 5}],
    'test_cfg.max_per_img': NOT_SIZES,
    'model.compile': [
        *(v for v in NOT_DICTS if v is not True), {'mode': 'fastest'},
        {'mode': 3}, {'mode': 'default', 'options': {}}, {'backend': 'none'},
        {'dynamic': 'yes'}, {'options': 3}, {'options': {'fast': 1}},
        {'fast': True}, {1: 2},
    ],
    'backbone': NOT_CONFIGS,
    'neck': NOT_CONFIGS,
    'neck.in_channels': NOT_LISTS,
    'neck.in_channels[1]': NOT_SIZES,
    'neck.out_channels': [*NOT_SIZES, 1, 6, 4321],
    'neck.num_norm_groups': [*NOT_SIZES, 3, 17, HUGE],
    'decoder': NOT_CONFIGS,
    'decoder.num_classes': NOT_SIZES,
    'decoder.num_stages': NOT_SIZES,
    'decoder.embed_dims': [*NOT_SIZES, 1, 12, 99],
    'decoder.num_heads': [*NOT_SIZES, 3, 17, HUGE],
    'decoder.num_groups': [*NOT_SIZES, 3, 17, HUGE],
    'decoder.in_points': NOT_SIZES,
    'decoder.out_points': NOT_SIZES,
    'decoder.feedforward_channels': NOT_SIZES,
    'decoder.num_cls_fcs': NOT_COUNTS,
    'decoder.num_reg_fcs': NOT_COUNTS,
    'decoder.strides': NOT_LISTS,
    'decoder.strides[1]': NOT_SIZES,
    'decoder.with_cp': [*NOT_FLAGS, 1],
    'decoder.stacks': NOT_DICTS,
    'criterion': NOT_CONFIGS,
    'criterion.assigner.match_costs[1].weight': NOT_WEIGHTS,
}  # fmt: skip
for _step in STACKS:
    # Also in a mode that has no use for them: another is one option away.
    WRONG |= {
        f'decoder.stacks.{_step}': [
            *NOT_DICTS, {'ranks': 1}, {'mode': 'lors', 'r': 1}, {1: 2},
        ],
        f'decoder.stacks.{_step}.mode': [*NOT_SIZES, 'LORS'],
        f'decoder.stacks.{_step}.rank': per_stage([*NOT_COUNTS, 17, HUGE]),
        f'decoder.stacks.{_step}.num_param_groups': per_stage(NOT_SIZES),
    }  # fmt: skip
for _part in ('assigner', *LOSSES):
    WRONG |= {
        f'criterion.{_part}': NOT_CONFIGS,
        f'criterion.{_part}.type': ['', 'L3Loss'],
        f'criterion.{_part}.gama': NOT_SIZES,
    }
for _part in LOSSES:
    WRONG[f'criterion.{_part}.loss_weight'] = NOT_WEIGHTS
for _part in ('backbone', 'neck', 'decoder', 'criterion'):
    WRONG |= {f'{_part}.embed_dim': [8], f'{_part}.type': ['Missing']}


@pytest.mark.parametrize('key', WRONG)
def test_wrong_value(key: str) -> None:
    """One line: the key as a config has it, the value, what is right."""
    *parents, last = (
        int(name) if name.isdigit() else name
        for name in re.findall(r'\w+', key.removeprefix('model.'))
    )
    for value in WRONG[key]:
        config = detector_config()
        place: Any = config
        for name in parents:
            if isinstance(place, dict):
                place.setdefault(name, {})
            place = place[name]
        place[last] = value
        with (
            pytest.raises(SystemExit) as caught,
            OneLineErrors({'model': config}),
        ):
            build(config)
        text = str(caught.value)
        assert f'{key}={value!r}' in text
        assert re.search(RIGHT, text)
        assert '\n' not in text


@pytest.mark.parametrize('name', ['', 'mixing', 'FFN', 3])
def test_unknown_step(name: Any) -> None:
    config = detector_config()
    config['decoder']['stacks'] = {name: {}, 'ffn': None}
    with pytest.raises(ValueError, match=r'decoder\.stacks has') as caught:
        build(config)
    text = f'has [{name!r}]: expected keys out of {list(STACKS)}'
    assert text in str(caught.value)


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
    with pytest.raises(ValueError, match=rf'{step}\.rank={highest + 1}: '):
        make(highest + 1)


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


@examples(12)
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
