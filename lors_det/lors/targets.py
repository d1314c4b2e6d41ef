# SPDX-License-Identifier: Apache-2.0
"""Find the weights of identical layers, and put stacks in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lors_det.lors.borrow import LayerStacks, Loan, borrow, loans
from lors_det.lors.config import StackConfig
from lors_det.lors.naming import find
from lors_det.lors.stacks import StackedLinear

Filler = Callable[[StackedLinear, Sequence[Tensor]], object]
LISTS = (nn.ModuleList, nn.Sequential)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
IN_PROJ = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')
STACKS = 'a mapping from weights of a layer to a StackConfig or its fields'


class Target(NamedTuple):
    """One weight of all layers of a list.

    Args:
        owner: Module that the stack is registered on.
        holder: Name of its `LayerStacks`.
        name: Name of the parameter inside of a layer.
        modules: The N modules that have the parameter.
        stack: What takes their place.
    """

    owner: nn.Module
    holder: str
    name: str
    modules: list[nn.Module]
    stack: StackedLinear

    def weights(self) -> list[Tensor]:
        """The N present weights as matrices (out, in)."""
        name = self.name.rpartition('.')[2]
        return [
            module.get_parameter(name).detach().flatten(1)
            for module in self.modules
        ]


def targets(
    model: nn.Module, stacks: Mapping[str, Mapping[str, Any]]
) -> list[Target]:
    """Find what is to be replaced, and build the stacks; change nothing.

    Args:
        model: See `lorsify`.
        stacks: See `lorsify`.

    Returns:
        One target for each weight.

    Raises:
        TypeError: See `lorsify`.
        ValueError: See `lorsify`.
    """
    if not isinstance(stacks, Mapping):
        raise TypeError(f'stacks={stacks!r}: expected a dict')
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LISTS) and len(module)
    }
    found: list[Target] = []
    for pattern, weights in stacks.items():
        if not isinstance(weights, Mapping) or not weights:
            raise TypeError(f'stacks[{pattern!r}]={weights!r}: not {STACKS}')
        for name in find(pattern, lists, 'list of layers'):
            found.extend(_targets_of(model, name, lists[name], weights))
    modules = [(id(m), t.name) for t in found for m in t.modules]
    if len(set(modules)) < len(modules):
        names = sorted({n for m, n in modules if modules.count((m, n)) > 1})
        raise ValueError(f'stacks: {names} named by two patterns, name once')
    return found


def replace(found: Sequence[Target], filler: Filler) -> None:
    """Register stacks, give them values, and let the layers borrow.

    Args:
        found: What `targets` found.
        filler: Gives a stack its values, from the N matrices (out, in).
    """
    for target in found:
        weights = target.weights()
        filler(target.stack, weights)
        name = target.name.rpartition('.')[2]
        shape = target.modules[0].get_parameter(name).shape
        holder = getattr(target.owner, target.holder, None)
        if holder is None:
            holder = LayerStacks()
            target.owner.add_module(target.holder, holder)
        holder[target.name.replace('.', '-')] = target.stack
        for layer, module in enumerate(target.modules):
            borrow(module, name, Loan(target.stack, layer, shape))


def _targets_of(
    model: nn.Module,
    list_name: str,
    layers: Sequence[nn.Module] | Any,
    weights: Mapping[str, Any],
) -> Iterator[Target]:
    owner, holder = _owner(model, list_name)
    _check_identical(list_name, layers)
    choices = _choices(layers[0])
    named: dict[str, Any] = {}
    for pattern, config in weights.items():
        name_of = f'weight of a layer of {list_name!r}'
        try:
            keys = find(pattern, choices, name_of)
        except ValueError:
            _check_supported(layers[0], pattern, list_name)
            raise
        for name in dict.fromkeys(n for key in keys for n in choices[key]):
            if name in named:
                raise ValueError(
                    f'stacks[{list_name!r}]: {name!r} is matched by '
                    f'{named[name]!r} and by {pattern!r}: name it once'
                )
            named[name] = pattern
            yield _target(owner, holder, list_name, name, layers, config)


def _target(
    owner: nn.Module,
    holder: str,
    list_name: str,
    name: str,
    layers: Any,
    config: Any,
) -> Target:
    path, _, parameter = name.rpartition('.')
    modules = [layer.get_submodule(path) for layer in layers]
    key = f'{list_name}.*.{name}'
    if any(parameter in loans(module) for module in modules):
        raise ValueError(f'{key} comes from a stack already')
    values = [module._parameters.get(parameter) for module in modules]
    if any(value is None for value in values):
        raise ValueError(f'{key}: not a plain parameter (parametrized?)')
    if len({id(value) for value in values}) < len(values):
        raise ValueError(f'{key}: layers have this parameter in common')
    first = values[0]
    rows, cols = first.shape[0], first[0].numel()
    stack = StackedLinear(
        len(layers), cols, rows, StackConfig.parse(config, key),
        bias=False, key=f'{key} ({rows} x {cols})',
    )  # fmt: skip
    stack.to(device=first.device, dtype=first.dtype)
    stack.train(owner.training)
    stack.requires_grad_(any(value.requires_grad for value in values))
    return Target(owner, holder, name, modules, stack)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Nearest module around a list that is not itself iterated over."""
    parts = name.split('.') if name else []
    for depth in range(len(parts) - 1, -1, -1):
        owner = model.get_submodule('.'.join(parts[:depth]))
        if not isinstance(owner, (*LISTS, nn.ModuleDict)):
            return owner, '_'.join([*parts[depth:], 'stacks'])
    raise ValueError(
        f'{name!r}: no module around the list can own its stacks; make the '
        'list an attribute of a module of its own'
    )


def _choices(layer: nn.Module) -> dict[str, list[str]]:
    """Parameters of a layer that can be stacked, by name of what has them."""
    choices: dict[str, list[str]] = {}
    for path, module in layer.named_modules():
        prefix = f'{path}.' if path else ''
        names = []
        if isinstance(module, LINEAR):
            names = [f'{prefix}weight']
        elif isinstance(module, nn.MultiheadAttention):
            names = [
                f'{prefix}{name}'
                for name in IN_PROJ
                if name in loans(module)
                or module._parameters.get(name) is not None
            ]
            names.append(f'{prefix}out_proj.weight')
        if names:
            choices.setdefault(path, names)
            choices.update({name: [name] for name in names})
    return choices


def _check_supported(layer: nn.Module, name: str, list_name: str) -> None:
    module = dict(layer.named_modules()).get(name)
    if module is not None:
        raise TypeError(
            f'stacks[{list_name!r}]: {name!r} is a {type(module).__name__}; '
            'expected a Linear, a convolution or an nn.MultiheadAttention: '
            f'{list(_choices(layer))}'
        )


def _check_identical(list_name: str, layers: Any) -> None:
    first = {name: p.shape for name, p in layers[0].named_parameters()}
    for i, layer in enumerate(layers):
        shapes = {name: p.shape for name, p in layer.named_parameters()}
        for name in {**first, **shapes}:
            ours, other = first.get(name), shapes.get(name)
            if ours != other:
                raise ValueError(
                    f'{list_name!r}: layers are not identical: {name!r} is '
                    f'{_shape(ours)} in layer 0 and {_shape(other)} in '
                    f'layer {i}'
                )


def _shape(shape: torch.Size | None) -> str:
    return 'absent' if shape is None else str(tuple(shape))
