# SPDX-License-Identifier: Apache-2.0
"""Modules that borrow their weight from a stack instead of owning it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lors_det.lors.stacks import StackedLinear

BORROWED = '_lors_borrowed'


class LayerStacks(nn.ModuleDict):
    """The stacks of a list of layers: their only owner.

    `lorsify` registers one next to the list. The key of a stack is the name
    of the parameter inside of a layer, with dashes for dots.
    """


class Loan(NamedTuple):
    """Where a weight comes from.

    Args:
        stack: Owner of the weights of all layers.
        layer: Index of the layer.
        shape: Shape of the weight; the stack has its first size by the
            product of the others.
    """

    stack: StackedLinear
    layer: int
    shape: torch.Size

    def weight(self) -> Tensor:
        """Build the weight, in the type of its parameters.

        Autocast would make the sum in half precision. Who uses the weight
        casts it as it would cast a parameter.
        """
        device = next(self.stack.parameters()).device.type
        if device != 'meta':  # which knows no autocast
            with torch.autocast(device, enabled=False):
                return self.stack.weight(self.layer).view(self.shape)
        return self.stack.weight(self.layer).view(self.shape)


def loans(module: nn.Module) -> dict[str, Loan]:
    """What a module borrows, by the name of the parameter."""
    return module.__dict__.get(BORROWED, {})


def borrow(module: nn.Module, name: str, loan: Loan) -> None:
    """Make a module read a weight from a stack.

    The module changes to a subclass of its class in which the weight is a
    property, so that whoever reads it, the fast paths of torch's attention
    and encoder layer too, reads what the stack holds. The stack is not
    registered: it would be twice in a state dict. A deep copy of the model
    copies it once and all references with it.

    Args:
        module: Owner of the parameter.
        name: Name of the parameter.
        loan: Where it comes from from now on.
    """
    held = {**loans(module), name: loan}
    kind = type(module)
    base = vars(kind).get('lors_base', kind)
    # None keeps the place: `give_back` restores the order of a state dict.
    module._parameters[name] = None
    module.__dict__[BORROWED] = held
    module.__class__ = borrowing(base, tuple(held))


def give_back(module: nn.Module) -> None:
    """Make a borrowing module own plain parameters again.

    Args:
        module: It becomes an instance of its first class, with the present
            value of its weights.
    """
    for name, loan in loans(module).items():
        frozen = not any(p.requires_grad for p in loan.stack.parameters())
        module._parameters[name] = nn.Parameter(
            loan.weight().detach().clone(), requires_grad=not frozen
        )
    del module.__dict__[BORROWED]
    module.__class__ = vars(type(module))['lors_base']


@functools.cache
def borrowing(base: Any, names: tuple[str, ...]) -> Any:
    """Derive a class that borrows weights.

    Args:
        base: Class of the module.
        names: Names of its borrowed parameters.

    Returns:
        A subclass that says so in its name.
    """

    def register_parameter(
        self: nn.Module, name: str, param: nn.Parameter | None
    ) -> None:
        if name in names:
            raise ValueError(
                f'{name!r} of this {base.__name__} comes from a stack: '
                'change the stack, or fold the model first'
            )
        base.register_parameter(self, name, param)

    def load(
        self: Any, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        for name in names:
            if prefix + name in state_dict:
                raise ValueError(
                    f'the checkpoint is dense: it holds {prefix + name!r}, '
                    'which comes from a stack here; load it before `lorsify`,'
                    ' then `factorise`'
                )
        base._load_from_state_dict(self, state_dict, prefix, *args)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        # This class has no importable name: build it anew.
        state = base.__reduce_ex__(self, protocol)[2:]
        return _empty, (base, names), *state

    return type(
        f'Borrowing{base.__name__}',
        (base,),
        {
            '__doc__': f'{base.__name__} that borrows weights from a stack.',
            '__reduce_ex__': reduce,
            '_load_from_state_dict': load,
            'lors_base': base,
            'register_parameter': register_parameter,
            **{name: property(_getter(name)) for name in names},
        },
    )


def _getter(name: str) -> Any:
    def weight(self: nn.Module) -> Tensor:
        loan: Loan = self.__dict__[BORROWED][name]
        return loan.weight()

    return weight


def _empty(base: Any, names: tuple[str, ...]) -> Any:
    """An instance without state, for copies and pickles."""
    kind = borrowing(base, names)
    return kind.__new__(kind)
