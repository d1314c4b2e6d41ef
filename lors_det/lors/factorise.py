# SPDX-License-Identifier: Apache-2.0
"""Turn a trained dense model into LORS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from lors_det.lors.config import StackConfig
from lors_det.lors.fit import FitReport, fit_matrices
from lors_det.lors.fit_adaptive import fit_generators
from lors_det.lors.naming import match_module_names
from lors_det.lors.stacks import AdaptiveStack, StackedLinear
from lors_det.lors.surgery import plan_replacements, replace_weights

AnyStack = StackedLinear | AdaptiveStack


def factorise(
    model: nn.Module,
    stacks: Mapping[str, Any],
    max_iters: int = 50,
    tol: float = 1e-6,
    inputs: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, FitReport]:
    """Turn a trained dense model into LORS, as near as its ranks allow.

    In place. It is `lorsify` with the best fit that alternation finds, and
    it also takes stacks in the mode ``dense``, as a decoder has them.
    Fine-tune afterwards: the fit minimises the error of the weights and not
    the loss of the model.

    Args:
        model: With trained weights.
        stacks: As for `lorsify`; or, for the name or pattern of a
            `StackedLinear` or `AdaptiveStack` in the mode ``dense``, a
            `StackConfig` or a dict of its fields.
        max_iters: Largest number of alternations; 0 leaves the mean and the
            truncated residuals.
        tol: Stop when the summed squared error falls by less than this
            fraction of the squared weights.
        inputs: What the N layers of a stack are given, by the name that the
            stack has in the result, as `record_inputs` returns it: the fit
            minimises the error of their outputs. A stack without inputs is
            fitted to the weights alone.

    Returns:
        For every stack, by its name, the errors of the layers at its rank
        and at other ranks.

    Raises:
        TypeError: See `lorsify`.
        ValueError: See `lorsify`; also for a stack that is not dense.
    """
    dense = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (StackedLinear, AdaptiveStack))
    }
    layer_lists: dict[str, Any] = {}
    new: dict[str, AnyStack] = {}
    for pattern, config in stacks.items():
        if _is_config(config):
            for name in match_module_names(pattern, dense, 'stack'):
                new[name] = _empty_like(dense[name], name, config)
        else:
            layer_lists[pattern] = config
    plan = plan_replacements(model, layer_lists)
    inputs = inputs or {}
    keys = {*new, *(each.stack.key.split(' ')[0] for each in plan)}
    if set(inputs) - keys:
        raise ValueError(
            f'inputs has {sorted(set(inputs) - keys)}: expected names out of '
            f'{sorted(keys)}'
        )
    reports: dict[str, FitReport] = {}
    for name, stack in new.items():
        given = inputs.get(name)
        reports[name] = _fit(stack, dense[name], max_iters, tol, given)
        parent, _, attribute = name.rpartition('.')
        model.get_submodule(parent).register_module(attribute, stack)

    def init_fn(stack: StackedLinear, weights: Sequence[Tensor]) -> None:
        key = stack.key.split(' ')[0]
        given = inputs.get(key)
        reports[key] = fit_matrices(stack, weights, max_iters, tol, given)

    replace_weights(model, plan, init_fn)
    return reports


def _is_config(config: object) -> bool:
    """Tell the fields of one stack from the weights of a layer."""
    return isinstance(config, StackConfig) or (
        isinstance(config, Mapping) and isinstance(config.get('mode'), str)
    )


def _empty_like(dense: AnyStack, name: str, config: object) -> AnyStack:
    """Build the stack that replaces a dense one."""
    if not dense.dense:
        raise ValueError(
            f'{name!r} has the mode {dense.config.mode!r} already; only a '
            'dense stack can be factorised'
        )
    stack: AnyStack = dense.like(config)
    if stack.dense:
        raise ValueError(f"{name!r}: mode='dense': the stack is that already")
    return stack


def _fit(
    stack: AnyStack,
    dense: AnyStack,
    max_iters: int,
    tol: float,
    inputs: Sequence[Tensor] | None,
) -> FitReport:
    """Fit a stack to a dense one of the same kind."""
    if isinstance(stack, AdaptiveStack):
        generators = cast(Sequence[nn.Linear], dense.dense)
        return fit_generators(stack, generators, max_iters, tol, inputs)
    assert isinstance(dense, StackedLinear)
    stack.bias.load_state_dict(dense.bias.state_dict())
    return fit_matrices(stack, list(dense.dense), max_iters, tol, inputs)
