# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.factories import STRIDES, decoder, positions, pyramid, randomise

from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.geometry import position_embedding
from lors_det.analysis.explain import Summary, summarise
from lors_det.analysis.trace import ImageTrace, StageTrace, record


@pytest.fixture
def model() -> AdaMixerDecoder:
    model = decoder('lors').eval()
    randomise(model)
    return model


@pytest.fixture
def inputs() -> tuple[Any, ...]:
    return pyramid(2), torch.randn(2, 7, 32), positions(2, 7)


@torch.no_grad()
def test_recording_changes_nothing(
    model: AdaMixerDecoder, inputs: tuple[Any, ...]
) -> None:
    before = model(*inputs)
    with record(model) as stages:
        during = [model(*inputs), model(*inputs)][1]
        assert len(stages) == 3  # of the last run
    last = list(stages)
    after = model(*inputs)
    assert stages == last
    for outputs in (during, after):
        for output, expected in zip(outputs, before, strict=True):
            assert all(map(torch.equal, output, expected))


@torch.no_grad()
def test_what_is_recorded(
    model: AdaMixerDecoder, inputs: tuple[Any, ...]
) -> None:
    feats, content, xyzr = inputs
    with record(model) as stages:
        outputs = model(feats, content, xyzr)
    # The last stage by hand, from what the one before returned.
    content = model.attention(outputs[1].content, outputs[1].xyzr, 2)
    points = model.sampling.points(content, outputs[1].xyzr, 2)
    assert torch.equal(stages[2].points, points)
    assert torch.equal(stages[2].content, content)
    assert torch.equal(stages[2].before, outputs[1].bboxes)
    assert torch.equal(stages[2].after, outputs[2].bboxes)
    assert torch.equal(stages[2].scores, outputs[2].cls_logits.sigmoid())
    for stage in stages:
        assert stage.attention.shape == (2, 7, 7)
        assert stage.level_weights.shape == (2, 7, 2, 4, len(STRIDES))
        for weights in (stage.attention, stage.level_weights):
            one = torch.ones_like(weights[..., 0])
            torch.testing.assert_close(weights.sum(-1), one)


@torch.no_grad()
def test_attention_weights_are_those_of_the_forward(
    model: AdaMixerDecoder, inputs: tuple[Any, ...]
) -> None:
    """Applied to the values, they give what the output projection gets."""
    _, content, xyzr = inputs
    attention = model.attention
    taken = []
    attention.out_proj.register_forward_pre_hook(
        lambda _, args: taken.append(args[0])
    )
    attention(content, xyzr, 1)
    weights = attention.weights(content, xyzr, 1)
    value = attention.in_proj(content + position_embedding(xyzr, 32), 1).chunk(
        3, -1
    )[2]
    heads = value.unflatten(-1, (4, -1)).transpose(1, 2)
    expected = (weights @ heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(taken[0], expected)


def stage(box: list[float], before: list[float], score: float) -> StageTrace:
    """One query, one class, one point that reads the first of two levels."""
    return StageTrace(
        before=torch.tensor([before]),
        after=torch.tensor([box]),
        attention=torch.ones(1, 1),
        content=torch.zeros(1, 4),
        points=torch.zeros(1, 1, 1, 3),
        level_weights=torch.tensor([1.0, 0.0]).view(1, 1, 1, 2),
        scores=torch.tensor([[score, 0.5]]),
    )


def test_when_a_detection_is_settled() -> None:
    final, other = [0.0, 0, 10, 10], [30.0, 40, 40, 50]
    stages = [
        stage(final, other, 0.9),
        stage(other, final, 0.9),  # leaves again
        stage(final, other, 0.4),  # is of the other class
        stage([0.0, 0, 10, 9.5], final, 0.9),
        stage(final, final, 0.9),
    ]
    trace = ImageTrace(
        image=torch.zeros(50, 50, 3).numpy(),
        stages=stages,
        scores=torch.tensor([0.9, 0.5]),
        labels=torch.tensor([0, 1]),
        queries=torch.tensor([0, 0]),
        classes=['a', 'b'],
        strides=[4, 8],
    )
    found: Summary = summarise(trace, 0.6)
    assert found.settled.tolist() == [3]
    expected = torch.tensor([[5, 5, 5, 0.025, 0.0]])
    torch.testing.assert_close(found.moves, expected)
    assert found.levels.tolist() == [[[1, 0]] * 5]
    assert len(summarise(trace, 0.95).settled) == 0
