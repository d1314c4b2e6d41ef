# SPDX-License-Identifier: Apache-2.0
"""Weights of layers that are tied to a stack.

This is not done with ``torch.nn.utils.parametrize``: a parametrized module
refuses to be pickled, and to remove a parametrization from a deep copy breaks
the original, because both have the class that holds the property.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lors_det.lors.stacks import StackedLinear


class LayerStacks(nn.ModuleDict):
    """The stacks of a list of layers, which no other module registers.

    The key of a stack is the name of the parameter inside of a layer, with
    dashes for dots.
    """


class TiedWeight(NamedTuple):
    """Stack and layer of a weight."""

    stack: StackedLinear
    layer: int
    shape: torch.Size  # (out, ...); the stack's is (out, product of the rest)

    def build(self) -> Tensor:
        """Build the weight in the dtype of the stack's parameters.

        Without autocast, which would make the sum in half precision; the
        layer casts the weight as it would cast a parameter.
        """
        device = next(self.stack.parameters()).device.type
        device = 'cpu' if device == 'meta' else device  # meta has no autocast
        with torch.autocast(device, enabled=False):
            return self.stack.weight(self.layer).view(self.shape)


class TiedModule(nn.Module):
    """First base of every module with tied weights.

    The other base is ``untied_class``, the class that the module had before.
    """

    untied_class: Any

    def register_parameter(
        self, name: str, param: nn.Parameter | None
    ) -> None:
        """Refuse a parameter that would replace a tied weight."""
        if name in tied_weights(self):
            raise ValueError(
                f'{name!r} of this {self.untied_class.__name__} comes from a '
                'stack: change the stack, or fold the model first'
            )
        super().register_parameter(name, param)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        for name in tied_weights(self):
            if prefix + name in state_dict:
                raise ValueError(
                    f'the checkpoint is dense: it holds {prefix + name!r}, '
                    'which comes from a stack here; load it before `lorsify`,'
                    ' then `factorise`'
                )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Tell pickles, which cannot import the class, to make it again."""
        names = tuple(tied_weights(self))
        state = super().__reduce_ex__(protocol)[2:]
        return _new, (self.untied_class, names), *state


def tied_weights(module: nn.Module) -> dict[str, TiedWeight]:
    """Return the tied weights of a module by the name of the parameter."""
    return module.__dict__.get('_lors_tied', {})


def tie_weight(module: nn.Module, name: str, tied: TiedWeight) -> None:
    """Make a module read a weight from a stack instead of owning it.

    The class of the module becomes a subclass in which the weight is a
    property, which the fast paths of torch's attention read too. The module
    only refers to the stack: registered, it would be in the state dict twice.
    A deep copy of the model refers to its own stacks.

    Args:
        module: Owner of the parameter.
        name: Name of the parameter.
        tied: Where the weight comes from.
    """
    base: Any = getattr(module, 'untied_class', type(module))
    # None keeps the place in the order of the state dict for untying.
    module._parameters[name] = None
    all_tied = {**tied_weights(module), name: tied}
    module.__dict__['_lors_tied'] = all_tied
    module.__class__ = _tied_class(base, tuple(all_tied))


def untie_weights(module: nn.Module) -> None:
    """Make a module own its tied weights, and undo `tie_weight`."""
    for name, tied in tied_weights(module).items():
        trainable = any(p.requires_grad for p in tied.stack.parameters())
        module._parameters[name] = nn.Parameter(
            tied.build().detach().clone(), requires_grad=trainable
        )
    del module.__dict__['_lors_tied']
    module.__class__ = cast(TiedModule, module).untied_class


@functools.cache
def _tied_class(base: Any, names: tuple[str, ...]) -> Any:
    """Derive a class in which the weights of these names are properties."""
    properties = {name: property(_reader(name)) for name in names}
    return type(
        f'Tied{base.__name__}',
        (TiedModule, base),
        {'untied_class': base, **properties},
    )


def _reader(name: str) -> Callable[[nn.Module], Tensor]:
    return lambda module: tied_weights(module)[name].build()


def _new(base: type, names: tuple[str, ...]) -> Any:
    """Make an instance without state, for pickles."""
    tied_class = _tied_class(base, names)
    return tied_class.__new__(tied_class)
