# SPDX-License-Identifier: Apache-2.0
"""A builder that puts any detector of MMDetection on stacks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmdet.registry import MODELS
from torch import nn

from lors_det.lors import lorsify


def Lorsified(  # named as a class in configs: it stands where one does
    detector: str,
    stacks: Mapping[str, Mapping[str, Any]],
    init: str = 'first',
    **config: Any,
) -> nn.Module:
    """Build a detector of MMDetection with some of its weights on stacks.

    The result is the detector itself, so that whatever works with it works as
    before. In a config with one of MMDetection's as base::

        model = dict(
            type='Lorsified',
            detector='DETR',
            stacks={'decoder.layers': {'ffn.layers.0.0': dict(
                mode='lors', rank=32)}},
        )

    ``init_weights``, which the runner calls, builds the dense counterpart,
    lets it draw or load its own initial values and takes them over.

    Args:
        detector: Type of the detector.
        stacks: See `lorsify`.
        init: How the stacks start, see `lorsify`. The default keeps the
            detector's own distribution of initial values: with ``weights``,
            the mean of N random matrices would have 1 / sqrt(N) of their
            spread. ``weights`` is for layers that start from a checkpoint.
        config: The detector's own settings.

    Returns:
        The detector.

    Raises:
        TypeError: See `lorsify`.
        ValueError: See `lorsify`.
    """
    dense = {'type': detector, **config}
    # Cheap, and possible on the meta device: `init_weights` comes later.
    at_build = 'fresh' if init == 'fresh' else 'first'
    model = lorsify(MODELS.build(copy.deepcopy(dense)), stacks, at_build)
    model.__dict__['init_weights'] = partial(
        _init_weights, model, dense, stacks, init
    )
    return model


MODELS.register_module(module=Lorsified)


def _init_weights(
    model: nn.Module,
    dense: dict[str, Any],
    stacks: Mapping[str, Mapping[str, Any]],
    init: str,
) -> None:
    """Take over the initial values of the dense counterpart."""
    counterpart = MODELS.build(copy.deepcopy(dense))
    counterpart.init_weights()
    like = next(model.parameters())
    counterpart.to(device=like.device, dtype=like.dtype)
    model.load_state_dict(lorsify(counterpart, stacks, init).state_dict())
