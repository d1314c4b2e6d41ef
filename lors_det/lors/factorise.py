# SPDX-License-Identifier: Apache-2.0
"""From trained dense stacks to LORS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lors_det.lors.config import StackConfig
from lors_det.lors.fit import FitReport, fill
from lors_det.lors.fit_adaptive import fill_adaptive
from lors_det.lors.naming import find
from lors_det.lors.stacks import AdaptiveStack, Stack, StackedLinear
from lors_det.lors.targets import replace, targets


def factorise(
    model: nn.Module,
    stacks: Mapping[str, Any],
    max_iters: int = 50,
    tol: float = 1e-6,
) -> dict[str, FitReport]:
    """Turn a trained dense model into LORS, as near as its ranks allow.

    In place. It is `lorsify` with the best fit that alternation finds, and
    it takes the dense stacks of a model that is built on stacks too. Fine-tune
    afterwards: the loss is not what is minimised.

    Args:
        model: With trained weights.
        stacks: As for `lorsify`; or, for the name or pattern of a
            `StackedLinear` or `AdaptiveStack` in the mode ``dense``, a
            `StackConfig` or a dict of its fields.
        max_iters: Largest number of alternations; 0 leaves mean and
            truncated residuals.
        tol: Stop when the summed squared error sinks by less than this part
            of the squared weights.

    Returns:
        For every stack, by its name, the error of every layer and what other
        ranks would give.

    Raises:
        TypeError: See `lorsify`.
        ValueError: See `lorsify`; also for a stack that is not dense.
    """
    own = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Stack)
    }
    lists: dict[str, Any] = {}
    built: dict[str, Stack] = {}
    for pattern, config in stacks.items():
        if _is_config(config):
            for name in find(pattern, own, 'stack'):
                built[name] = _empty_like(own[name], name, config)
        else:
            lists[pattern] = config
    found = targets(model, lists)
    reports: dict[str, FitReport] = {}
    for name, stack in built.items():
        reports[name] = _fill(stack, own[name], max_iters, tol)
        parent, _, attribute = name.rpartition('.')
        model.get_submodule(parent).register_module(attribute, stack)

    def fit(stack: StackedLinear, weights: Sequence[Tensor]) -> None:
        key = stack.key.split(' ')[0]
        reports[key] = fill(stack, weights, max_iters, tol)

    replace(found, fit)
    return reports


def factorise_stack(
    dense: Stack, config: object, max_iters: int = 50, tol: float = 1e-6
) -> tuple[Stack, FitReport]:
    """Make a stack of another mode from a dense one, which stays.

    Args:
        dense: A `StackedLinear` or `AdaptiveStack` in the mode ``dense``.
        config: Mode and ranks (`StackConfig` or a dict of its fields).
        max_iters: See `factorise`.
        tol: See `factorise`.

    Returns:
        The new stack and the errors of its layers.

    Raises:
        TypeError: If ``config`` or the stack has a wrong type.
        ValueError: If the stack is not dense, or a rank is out of range.
    """
    if not isinstance(dense, Stack):
        raise TypeError(
            f'a {type(dense).__name__} is no stack: expected a StackedLinear '
            'or an AdaptiveStack'
        )
    stack = _empty_like(dense, dense.key, config)
    return stack, _fill(stack, dense, max_iters, tol)


def _is_config(config: object) -> bool:
    """Tell the fields of one stack from the weights of a layer."""
    return isinstance(config, StackConfig) or (
        isinstance(config, Mapping) and isinstance(config.get('mode'), str)
    )


def _empty_like(dense: Stack, name: str, config: object) -> Stack:
    """A fresh stack for the values of a dense one."""
    config = StackConfig.parse(config, dense.key)
    if config.mode == 'dense':
        raise ValueError(f"{name!r}: mode='dense': the stack is that already")
    if isinstance(dense, StackedLinear) and dense.dense:
        like = dense.dense[0]
        stack: Stack = StackedLinear(
            dense.num_layers, dense.in_features, dense.out_features, config,
            bias=len(dense.bias) > 0, key=dense.key,
        )  # fmt: skip
    elif isinstance(dense, AdaptiveStack) and dense.dense:
        generator = dense.dense[0]
        assert isinstance(generator, nn.Linear)
        like = generator.weight
        stack = AdaptiveStack(
            dense.num_layers, generator.in_features, dense.num_groups,
            dense.rows, dense.cols, config, dense.key,
        )  # fmt: skip
    else:
        raise ValueError(
            f'{name!r} has the mode {dense.config.mode!r} already; only a '
            'dense stack can be factorised'
        )
    stack.train(dense.training)
    return stack.to(device=like.device, dtype=like.dtype)


def _fill(stack: Stack, dense: Stack, max_iters: int, tol: float) -> FitReport:
    if isinstance(stack, AdaptiveStack):
        assert isinstance(dense, AdaptiveStack)
        generators = [m for m in dense.dense if isinstance(m, nn.Linear)]
        return fill_adaptive(stack, generators, max_iters, tol)
    assert isinstance(stack, StackedLinear)
    assert isinstance(dense, StackedLinear)
    for ours, theirs in zip(stack.bias, dense.bias, strict=True):
        ours.data.copy_(theirs.data)
    return fill(stack, [w.detach() for w in dense.dense], max_iters, tol)
