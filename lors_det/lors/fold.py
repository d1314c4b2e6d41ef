# SPDX-License-Identifier: Apache-2.0
"""Replace stacks by plain layers, for inference."""

from __future__ import annotations

import torch
from torch import nn

from lors_det.lors.borrow import LayerStacks, give_back, loans
from lors_det.lors.static import StackedLinear


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """Write the sums ``W_shared + B_i A_i`` down, in place: plain layers.

    Layers that `lorsify` put on stacks become what they were before, with
    the first names of their parameters: the model can be saved and loaded as
    the dense architecture. A `StackedLinear` of a model that is built on
    stacks becomes one in the mode ``dense``, so that the model's state dict is
    that of its dense twin. Outputs are equal, and nothing is left to multiply
    or add. What was shared is stored once per layer from now on.

    **This cannot be undone**: which part of a sum was shared is forgotten.
    Keep the checkpoint for training. `factorise` goes back only near.

    An `AdaptiveStack` stays as it is: its matrices depend on the query, so
    that there is no sum to write down.

    Args:
        model: With all layers that use a stack.

    Returns:
        The same model; another object only if ``model`` is itself a
        `StackedLinear`.

    Raises:
        ValueError: If ``model`` is a part of a lorsified model: its layers
            use stacks that it does not own, or owns stacks that others use.
    """
    if isinstance(model, StackedLinear):
        return _dense(model)
    modules = list(model.modules())
    borrowers = [module for module in modules if loans(module)]
    used = {id(loan.stack) for m in borrowers for loan in loans(m).values()}
    owned = {
        id(stack)
        for holder in modules
        if isinstance(holder, LayerStacks)
        for stack in holder.values()
    }
    if used != owned:
        raise ValueError(
            f'this {type(model).__name__} is a part of a lorsified model: '
            f'its layers use {len(used)} stacks and it owns {len(owned)}; '
            'fold the whole model'
        )
    for module in borrowers:
        give_back(module)
    for parent in modules:
        for name, child in list(parent.named_children()):
            if isinstance(child, LayerStacks):
                delattr(parent, name)
            elif isinstance(child, StackedLinear) and not child.dense:
                parent.register_module(name, _dense(child))
    return model


def _dense(stack: StackedLinear) -> StackedLinear:
    """A dense stack with the same matrices and biases."""
    if stack.dense:
        return stack
    like = next(stack.parameters())
    dense = StackedLinear(
        stack.num_layers, stack.in_features, stack.out_features,
        bias=len(stack.bias) > 0, key=stack.key,
    )  # fmt: skip
    dense.to(device=like.device, dtype=like.dtype).train(stack.training)
    for layer, weight in enumerate(dense.dense):
        weight.copy_(stack.weight(layer))
    for ours, theirs in zip(dense.bias, stack.bias, strict=True):
        ours.copy_(theirs)
    return dense.requires_grad_(like.requires_grad)
