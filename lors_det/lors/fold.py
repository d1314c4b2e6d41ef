# SPDX-License-Identifier: Apache-2.0
"""Replace stacks by plain layers, for inference."""

from __future__ import annotations

import torch
from torch import nn

from lors_det.lors.borrow import LayerStacks, give_back, loans
from lors_det.lors.stacks import AdaptiveStack, StackedLinear


@torch.no_grad()
def fold(model: nn.Module, generators: bool = False) -> nn.Module:
    """Write the sums ``W_shared + B_i A_i`` down, in place: plain layers.

    Layers that `lorsify` put on stacks become what they were before, with
    the first names of their parameters: the model can be saved and loaded as
    the dense architecture. A `StackedLinear` of a model that is built on
    stacks becomes one in the mode ``dense``, so that the model's state dict is
    that of its dense twin. Outputs are equal, and nothing is left to multiply
    or add. What was shared is stored once per layer from now on.

    **This cannot be undone**: which part of a sum was shared is forgotten.
    Keep the checkpoint for training. `factorise` goes back only near.

    The matrices of an `AdaptiveStack` depend on the query, but its generators
    are linear, so that their sum can be written down too. That saves the
    low-rank terms and costs a whole generator per layer: most of what LORS
    saves. It is therefore done on request only.

    Args:
        model: With all layers that use a stack.
        generators: Whether to fold `AdaptiveStack` too.

    Returns:
        The same model; another object only if ``model`` is itself a stack.

    Raises:
        ValueError: If ``model`` is a part of a lorsified model: its layers
            use stacks that it does not own, or owns stacks that others use.
    """
    kinds = (StackedLinear, AdaptiveStack) if generators else StackedLinear
    if isinstance(model, kinds):
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
            elif isinstance(child, kinds):
                parent.register_module(name, _dense(child))
    return model


AnyStack = StackedLinear | AdaptiveStack


def _dense(stack: AnyStack) -> AnyStack:
    """A dense stack with the same matrices and biases."""
    if stack.dense:
        return stack
    like = next(stack.parameters())
    dense = (
        _linear(stack)
        if isinstance(stack, StackedLinear)
        else _adaptive(stack)
    )
    dense.to(device=like.device, dtype=like.dtype).train(stack.training)
    return dense.requires_grad_(like.requires_grad)


def _linear(stack: StackedLinear) -> StackedLinear:
    dense = StackedLinear(
        stack.num_layers, stack.in_features, stack.out_features,
        bias=len(stack.bias) > 0, key=stack.key,
    )  # fmt: skip
    for layer in range(stack.num_layers):
        dense.dense[layer] = nn.Parameter(stack.weight(layer).clone())
    for layer, bias in enumerate(stack.bias):
        dense.bias[layer] = nn.Parameter(bias.clone())
    return dense


def _adaptive(stack: AdaptiveStack) -> AdaptiveStack:
    dense = AdaptiveStack(
        stack.num_layers, stack.query_dim, stack.num_groups, stack.rows,
        stack.cols, key=stack.key,
    )  # fmt: skip
    for layer, generator in enumerate(dense.dense):
        assert isinstance(generator, nn.Linear)
        weight, bias = stack.summed_generator(layer)
        generator.weight = nn.Parameter(weight.clone())
        generator.bias = nn.Parameter(bias.clone())
    return dense
