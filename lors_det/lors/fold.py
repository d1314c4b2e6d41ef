# SPDX-License-Identifier: Apache-2.0
"""Replace stacks by plain layers, for inference."""

from __future__ import annotations

import torch
from torch import nn

from lors_det.lors.stacks import AdaptiveStack, StackedLinear
from lors_det.lors.tied import LayerStacks, tied_weights, untie_weights


@torch.no_grad()
def fold(model: nn.Module, generators: bool = False) -> nn.Module:
    """Replace every ``W_shared + B_i A_i`` by its sum, in place.

    Layers that `lorsify` put on stacks become what they were before, with
    the same names of parameters: the model can be saved and loaded as the
    dense architecture. In a model that is built on stacks each
    `StackedLinear` becomes one in the mode ``dense``, so that the state dict
    is that of the dense counterpart. Outputs are equal, and nothing is left
    to multiply or add. Every layer now stores what was shared.

    **This cannot be undone**: the sum does not say which part was shared.
    Keep the checkpoint for training. `factorise` only comes near it.

    The matrices of an `AdaptiveStack` depend on the query, but its generators
    are linear and can be summed too. That saves the low-rank terms and costs
    a whole generator per layer, most of what LORS saves, and so it is done on
    request only.

    Args:
        model: With all layers that use a stack.
        generators: Whether to fold `AdaptiveStack` too.

    Returns:
        The same model; another object only if ``model`` is itself a stack.

    Raises:
        ValueError: If ``model`` is a part of a lorsified model: its layers
            use stacks that it does not own, or it owns stacks that others
            use.
    """
    kinds = (StackedLinear, AdaptiveStack) if generators else StackedLinear
    if isinstance(model, kinds):
        return _fold_stack(model)
    modules = list(model.modules())
    tied = {module: tied_weights(module) for module in modules}
    used = {w.stack for weights in tied.values() for w in weights.values()}
    holders = [module for module in modules if isinstance(module, LayerStacks)]
    if used != {stack for holder in holders for stack in holder.values()}:
        raise ValueError(
            f'this {type(model).__name__} is a part of a lorsified model: its '
            'layers use stacks that it does not own, or it owns stacks that '
            'other layers use; fold the whole model'
        )
    for module, weights in tied.items():
        if weights:
            untie_weights(module)
    for parent in modules:
        for name, child in list(parent.named_children()):
            if isinstance(child, LayerStacks):
                delattr(parent, name)
            elif isinstance(child, kinds):
                parent.register_module(name, _fold_stack(child))
    return model


def _fold_stack(stack: StackedLinear | AdaptiveStack) -> nn.Module:
    """Return a dense stack with the same weights and biases."""
    if stack.dense:
        return stack
    state = stack.state_dict()
    state = {name: state[name] for name in state if name.startswith('bias.')}
    for layer in range(stack.num_layers):
        if isinstance(stack, StackedLinear):
            state[f'dense.{layer}'] = stack.weight(layer)
        else:
            weight, bias = stack.summed_generator(layer)
            state[f'dense.{layer}.weight'] = weight
            state[f'dense.{layer}.bias'] = bias
    dense = stack.like(None)
    dense.load_state_dict(state)
    return dense
