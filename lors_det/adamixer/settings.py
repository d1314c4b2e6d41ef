# SPDX-License-Identifier: Apache-2.0
"""All checks of a detector's settings, made when it is built.

An error names the setting as a config has it, its value, and what would be
right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lors_det.lors.config import StackConfig, check_at_least, check_list

#: Steps of a stage whose weights can be put on stacks.
STACKS = (
    'attention',
    'offsets',
    'mixing_kernels',
    'mixing_out_proj',
    'ffn',
    'heads',
)


def check_decoder(settings: Mapping[str, Any]) -> None:
    """Check the settings of `AdaMixerDecoder`.

    Args:
        settings: All of its arguments, by name.

    Raises:
        TypeError: If a value has a wrong type.
        ValueError: If a size, divisibility, mode, rank or name is wrong.
    """
    may_be_zero = ('num_cls_fcs', 'num_reg_fcs')
    for name, value in settings.items():
        if name not in (*may_be_zero, 'strides', 'stacks', 'with_cp'):
            check_at_least(1, **{f'decoder.{name}': value})
    for name in may_be_zero:
        check_at_least(0, **{f'decoder.{name}': settings[name]})
    check_list(1, 'decoder.strides', settings['strides'])
    check_bool('decoder.with_cp', settings['with_cp'])

    embed_dims = settings['embed_dims']
    if embed_dims % 8:
        raise ValueError(
            f'decoder.embed_dims={embed_dims}: expected a multiple of 8, '
            'the position embedding has sine and cosine of 4 coordinates'
        )
    for name in ('num_heads', 'num_groups'):
        if embed_dims % settings[name]:
            raise ValueError(
                f'decoder.embed_dims={embed_dims} is not divisible by '
                f'decoder.{name}={settings[name]}'
            )

    stacks = settings['stacks']
    if not isinstance(stacks, Mapping):
        raise TypeError(
            f'decoder.stacks={stacks!r}: expected a dict with keys out of '
            f'{list(STACKS)}'
        )
    unknown = [step for step in stacks if step not in STACKS]
    if unknown:
        raise ValueError(
            f'decoder.stacks has {unknown}: expected keys out of '
            f'{list(STACKS)}'
        )
    for step, limit in max_ranks(settings).items():
        key = f'decoder.stacks.{step}'
        config = StackConfig.parse(stacks.get(step), key)
        config.private_sizes(settings['num_stages'], limit, key)


def max_ranks(settings: Mapping[str, Any]) -> dict[str, int]:
    """Return the largest rank of each step.

    That is the smallest side of all matrices of the step, since they have
    one rank in common.

    Args:
        settings: Arguments of `AdaMixerDecoder`, by name.
    """
    c, points = settings['embed_dims'], settings['in_points']
    groups = settings['num_groups']
    return {
        'attention': c,
        'offsets': min(c, 3 * groups * points),
        'mixing_kernels': min(c // groups, points, settings['out_points']),
        'mixing_out_proj': c,
        'ffn': min(c, settings['feedforward_channels']),
        'heads': min(c, settings['num_classes'], 4),
    }


def check_neck(
    in_channels: Any, out_channels: Any, num_norm_groups: Any
) -> None:
    """Check the settings of `SharedNormMapper`.

    Args:
        in_channels: See there.
        out_channels: See there.
        num_norm_groups: See there.

    Raises:
        TypeError: If a value has a wrong type.
        ValueError: If a size is below 1, or groups do not divide channels.
    """
    check_list(1, 'neck.in_channels', in_channels)
    check_at_least(1, **{'neck.out_channels': out_channels})
    check_at_least(1, **{'neck.num_norm_groups': num_norm_groups})
    if out_channels % num_norm_groups:
        raise ValueError(
            f'neck.out_channels={out_channels} is not divisible by '
            f'neck.num_norm_groups={num_norm_groups}'
        )


def check_detector(
    num_queries: object, test_cfg: object, compile: object
) -> None:
    """Check the settings of `AdaMixer` that are not those of a part.

    Args:
        num_queries: See there.
        test_cfg: See there.
        compile: See there.

    Raises:
        TypeError: If a value has a wrong type or an unknown key.
        ValueError: If a number is below 1.
    """
    if not isinstance(test_cfg, Mapping) or set(test_cfg) - {'max_per_img'}:
        raise TypeError(
            f"test_cfg={test_cfg!r}: expected a dict with 'max_per_img' or "
            'without any key'
        )
    sizes: dict[str, Any] = {'num_queries': num_queries}
    if 'max_per_img' in test_cfg:
        sizes['test_cfg.max_per_img'] = test_cfg['max_per_img']
    check_at_least(1, **sizes)
    if not isinstance(compile, (bool, Mapping)):
        raise TypeError(
            f'model.compile={compile!r}: expected True, False or a dict of '
            'options of torch.compile'
        )


def check_fit(neck: Any, decoder: Any) -> None:
    """Check that a decoder reads what the neck gives, if the neck says so.

    Args:
        neck: Its ``num_outs`` and ``out_channels`` are read, mmdet's names.
        decoder: The `AdaMixerDecoder`.

    Raises:
        ValueError: If number or channels of the levels differ.
    """
    strides, levels = decoder.strides, getattr(neck, 'num_outs', None)
    if levels not in (None, len(strides)):
        raise ValueError(
            f'decoder.strides={list(strides)}: the neck gives {levels} '
            'levels, expected one stride for each'
        )
    channels = getattr(neck, 'out_channels', None)
    if channels not in (None, decoder.embed_dims):
        raise ValueError(
            f'neck.out_channels={channels}: expected '
            f'decoder.embed_dims={decoder.embed_dims}'
        )


def check_loss_weights(criterion: Any) -> None:
    """Refuse negative and infinite weights of losses and matching costs.

    Neither mmdet's losses nor its matcher look at them.

    Args:
        criterion: A `SetCriterion` with its parts.

    Raises:
        TypeError: If a weight is no number.
        ValueError: If a weight is negative or not finite.
    """
    weights = {
        f'criterion.{name}.loss_weight': getattr(loss, 'loss_weight', 1.0)
        for name, loss in criterion.named_children()
    }
    for index, cost in enumerate(criterion.assigner.match_costs):
        key = f'criterion.assigner.match_costs[{index}].weight'
        weights[key] = getattr(cost, 'weight', 1.0)
    for key, weight in weights.items():
        message = f'{key}={weight!r}: expected a finite number of at least 0'
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(message)
        if not 0 <= weight < math.inf:
            raise ValueError(message)


def check_bool(key: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Args:
        key: Name of the setting.
        value: What it is set to.

    Raises:
        TypeError: If it is no bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f'{key}={value!r}: expected True or False')
