# SPDX-License-Identifier: Apache-2.0
"""Model surgery: replace the weights of identical layers by stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lors_det.lors.config import StackConfig
from lors_det.lors.naming import match_module_names
from lors_det.lors.stacks import StackedLinear
from lors_det.lors.tied import (
    LayerStacks,
    TiedWeight,
    tie_weight,
    tied_weights,
)

InitFn = Callable[[StackedLinear, Sequence[Tensor]], object]
LISTS = (nn.ModuleList, nn.Sequential)
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
IN_PROJ = ('in_proj_weight', 'q_proj_weight', 'k_proj_weight', 'v_proj_weight')


class Replacement(NamedTuple):
    """One weight of N layers, and the stack that replaces it."""

    list_name: str  # of the layers in the model
    name: str  # of the parameter inside of a layer
    modules: list[nn.Module]  # the N owners of the parameter
    stack: StackedLinear  # not registered yet

    @property
    def parameter(self) -> str:
        """Name of the parameter inside of its module."""
        return self.name.rpartition('.')[2]


def plan_replacements(
    model: nn.Module, stacks: Mapping[str, Mapping[str, Any]]
) -> list[Replacement]:
    """Find the weights to replace and build their stacks; change nothing.

    Args and errors are those of `lorsify`.
    """
    if not isinstance(stacks, Mapping):
        raise TypeError(f'stacks={stacks!r}: expected a dict')
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LISTS) and len(module)
    }
    plan: list[Replacement] = []
    for pattern, weights in stacks.items():
        if not isinstance(weights, Mapping) or not weights:
            raise TypeError(
                f'stacks[{pattern!r}]={weights!r}: not a mapping from weights '
                'of a layer to a StackConfig or its fields'
            )
        for name in match_module_names(pattern, lists, 'list of layers'):
            _find_owner(model, name)  # raises before anything is changed
            plan.extend(_plan_list(name, lists[name], weights))
    seen: set[tuple[int, str]] = set()
    for r in plan:
        parameters = {(id(module), r.parameter) for module in r.modules}
        if parameters & seen:
            raise ValueError(f'{r.stack.key} is named by two patterns')
        seen |= parameters
    return plan


def replace_weights(
    model: nn.Module, plan: Sequence[Replacement], init_fn: InitFn
) -> None:
    """Register stacks, give them values, and tie the layers to them.

    Args:
        model: The model.
        plan: Its `plan_replacements`.
        init_fn: Sets the values of a stack, from N matrices (out, in).
    """
    for r in plan:
        weights = [m.get_parameter(r.parameter).detach() for m in r.modules]
        init_fn(r.stack, [weight.flatten(1) for weight in weights])
        owner, holder = _find_owner(model, r.list_name)
        if not hasattr(owner, holder):
            owner.add_module(holder, LayerStacks())
        getattr(owner, holder)[r.name.replace('.', '-')] = r.stack
        for layer, module in enumerate(r.modules):
            tied = TiedWeight(r.stack, layer, weights[layer].shape)
            tie_weight(module, r.parameter, tied)


def _plan_list(
    list_name: str, layers: Any, weights: Mapping[str, Any]
) -> Iterator[Replacement]:
    """Plan the replacements in one list of layers."""
    stackable = _stackable_weights(layers[0])
    for pattern, config in weights.items():
        module = dict(layers[0].named_modules()).get(pattern)
        if module is not None and pattern not in stackable:
            raise TypeError(
                f'stacks[{list_name!r}]: {pattern!r} is a '
                f'{type(module).__name__}; expected a Linear, a convolution '
                f'or an nn.MultiheadAttention: {list(stackable)}'
            )
        what = f'weight of a layer of {list_name!r}'
        matched = match_module_names(pattern, stackable, what)
        # A module and its parameter may both match.
        for name in dict.fromkeys(n for m in matched for n in stackable[m]):
            yield _plan_weight(list_name, name, layers, config)


def _plan_weight(
    list_name: str, name: str, layers: Any, config: object
) -> Replacement:
    """Find the N modules of one weight and build a stack of its sizes."""
    path, _, parameter = name.rpartition('.')
    key = f'{list_name}.*.{name}'
    absent = nn.Module()
    modules = [dict(m.named_modules()).get(path, absent) for m in layers]
    if any(parameter in tied_weights(module) for module in modules):
        raise ValueError(f'{key} comes from a stack already')
    values: list[Any] = [m._parameters.get(parameter) for m in modules]
    shapes = [None if v is None else tuple(v.shape) for v in values]
    if len(set(shapes)) > 1:
        raise ValueError(f'{key} has the shapes {shapes}: expected one shape')
    if shapes[0] is None:
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
    stack.train(modules[0].training)
    stack.requires_grad_(any(value.requires_grad for value in values))
    return Replacement(list_name, name, modules, stack)


def _find_owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that registers the stacks of a list, and their name.

    It is the nearest module around the list that is no container: the stacks
    would be taken for layers by code that iterates over a container.
    """
    parts = name.split('.') if name else []
    for depth in reversed(range(len(parts))):
        owner = model.get_submodule('.'.join(parts[:depth]))
        if not isinstance(owner, (*LISTS, nn.ModuleDict)):
            return owner, '_'.join([*parts[depth:], 'stacks'])
    raise ValueError(
        f'{name!r}: no module around the list can own its stacks; make the '
        'list an attribute of a module of its own'
    )


def _stackable_weights(layer: nn.Module) -> dict[str, list[str]]:
    """Name the parameters of a layer that can be stacked.

    Keys are the names that a config may use: those of a module, for all its
    weights, and those of single parameters.
    """
    stackable: dict[str, list[str]] = {}
    for path, module in layer.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names = [n for n in IN_PROJ if getattr(module, n) is not None]
            names.append('out_proj.weight')
        elif isinstance(module, LINEAR):
            names = ['weight']
        else:
            continue
        names = [f'{path}.{name}'.lstrip('.') for name in names]
        stackable[path] = names
        stackable.update({name: [name] for name in names})
    return stackable
