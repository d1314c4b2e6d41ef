# SPDX-License-Identifier: Apache-2.0
"""Steps of training in float64, by one process or by several."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmdet.structures import DetDataSample
from mmengine.optim import OptimWrapper
from mmengine.structures import InstanceData
from torch import Tensor

from helpers.factories import build, detector_config, randomise

# Boxes of six images: more than there are queries, one, none. With two
# processes the second has a single box, with three the last has none.
COUNTS = (9, 0, 4, 1, 0, 0)
EMPTY = (0,) * 6


def batch(counts: tuple[int, ...]) -> dict[str, list[Any]]:
    """Images of several sizes, padded to the same one."""
    rng = np.random.default_rng(0)
    inputs, samples = [], []
    for index, count in enumerate(counts):
        h, w = (64, 96) if index % 2 else (60, 80)
        corners = np.sort(rng.random((count, 2, 2)), 1).reshape(count, 4)
        boxes = torch.tensor(corners * [w, h, w, h])
        labels = torch.from_numpy(rng.integers(0, 5, count))
        image = rng.integers(0, 256, (3, h, w), dtype=np.uint8)
        inputs.append(torch.from_numpy(image))
        samples.append(
            DetDataSample(
                metainfo={'img_shape': (h, w), 'scale_factor': (1.0, 1.0)},
                gt_instances=InstanceData(bboxes=boxes, labels=labels),
            )
        )
    return {'inputs': inputs, 'data_samples': samples}


def share(data: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The images of this process."""
    rank, size = dist.get_rank(), dist.get_world_size()
    number = len(data['inputs']) // size
    part = slice(rank * number, (rank + 1) * number)
    return {key: value[part] for key, value in data.items()}


def detector(mode: str) -> Any:
    """In float64, so that nothing hides behind rounding."""
    torch.manual_seed(0)
    model = build(detector_config(mode)).train()
    randomise(model)
    model.data_preprocessor.register_forward_hook(
        lambda module, args, found: {
            **found, 'inputs': found['inputs'].double()
        }
    )  # fmt: skip
    return model.double()


class Recording(OptimWrapper):
    """Keeps the gradients as they are before they are clipped."""

    gradients: list[Tensor]

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        super().backward(loss, **kwargs)
        self.gradients = [
            parameter.grad.clone()
            for group in self.param_groups
            for parameter in group['params']
        ]


def steps(
    model: Any, data: dict[str, list[Any]], number: int = 2
) -> tuple[list[dict[str, float]], list[list[Tensor]], list[Tensor]]:
    """Losses and gradients of some steps, and the weights after them."""
    wrapper = Recording(
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1),
        clip_grad={'max_norm': 1.0},
    )
    losses, gradients = [], []
    for _ in range(number):
        found = model.train_step(data, wrapper)
        losses.append({k: v.item() for k, v in found.items() if 'loss' in k})
        gradients.append(wrapper.gradients)
    weights = [x.detach().clone() for x in model.parameters()]
    return losses, gradients, weights


def assert_equal(
    found: list[Any], single: tuple[Any, ...], counts: tuple[int, ...]
) -> None:
    """Check that processes find what a single one does.

    Up to rounding in float64, and a constant that mmdet's losses add to their
    divisor, which is smaller the more processes there are.
    """
    losses, gradients, weights = single
    matched = max(1, sum(min(count, 7) for count in counts))  # 7 queries
    eps = torch.finfo(torch.float32).eps
    factor = (matched + eps) / (matched + len(found) * eps)
    for number, expected in enumerate(losses):
        assert len(expected) == 3 * 3 + 1
        for name, value in expected.items():
            mean = np.mean([each[0][number][name] for each in found])
            assert mean == pytest.approx(factor * value, 1e-11, 1e-12), name
    for each in found:
        for step, expected in zip(each[1], gradients, strict=True):
            largest = max(x.abs().max().item() for x in expected)
            assert largest > 1e-3
            for mine, other in zip(step, expected, strict=True):
                torch.testing.assert_close(
                    mine, factor * other, rtol=0, atol=1e-11 * largest
                )
        torch.testing.assert_close(each[2], weights, rtol=0, atol=1e-11)
        # From process to process it is the same bit by bit.
        for mine, first in zip(each[2], found[0][2], strict=True):
            assert torch.equal(mine, first)
