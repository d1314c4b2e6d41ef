# SPDX-License-Identifier: Apache-2.0
"""Put the weights of a list of identical layers on stacks, in any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lors_det.lors.fit import fit_matrices
from lors_det.lors.stacks import StackedLinear
from lors_det.lors.surgery import InitFn, plan_replacements, replace_weights

Model = TypeVar('Model', bound=nn.Module)


def lorsify(
    model: Model,
    stacks: Mapping[str, Mapping[str, Any]],
    init: str = 'weights',
) -> Model:
    """Put weights of identical layers on stacks, in place.

    For every weight that ``stacks`` names, one `StackedLinear` holds the
    weights of all N layers. It is registered once, in a `LayerStacks` next to
    the list (``layers`` -> ``layers_stacks``), and the weight of each layer is
    tied to it: forward, deep copies, ``to``, autocast, DDP, compilation and
    checkpointing work as before. Biases and weights that are not named stay
    with their layers. Build the optimiser after this.

    A kernel of a convolution is a matrix (out, in / groups * k * k). The name
    of an ``nn.MultiheadAttention`` means its projection of the input (packed,
    or one each for query, key and value) and that of the output.

    Source: LORS (arXiv:2403.04303), static structure (LORS-T), for any stack.

    Args:
        model: The model; it is changed.
        stacks: A dict of dicts, ``{list: {weight: config}}``. A list is the
            name of a ``ModuleList`` or ``Sequential`` of identical layers; a
            weight is the name, inside of a layer, of a module
            (``nn.Linear``, convolution, ``nn.MultiheadAttention``) or of one
            parameter of it; a config is a `StackConfig` or a dict of its
            fields. Names may be patterns: see `match_module_names`.
        init: Initial values of the stacks. ``weights``: the shared part is
            the mean of the present weights, the low-rank parts are truncated
            from what remains (`factorise` comes nearer). ``first``: the
            shared part is the present weight of the first layer, the low-rank
            parts are zero, so that the model keeps its own distribution of
            initial values; a stack without shared part starts as in
            ``weights``. ``fresh``: as `StackedLinear` draws them.

    Returns:
        The same model.

    Raises:
        TypeError: If ``stacks`` is not such a dict of dicts, or a module of
            another type is named.
        ValueError: If a name matches nothing, a weight has another shape in
            another layer, is on a stack already or named twice, a rank is
            larger than the matrix allows, or ``init`` is unknown. The model
            is unchanged then.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 128)
        >>> model = nn.TransformerEncoder(layer, 6)
        >>> config = dict(mode='lors', rank=4)
        >>> model = lorsify(
        ...     model, {'layers': {'self_attn': config, 'linear?': config}}
        ... )
    """
    if init not in INIT_FNS:
        raise ValueError(f'init={init!r}: expected one of {sorted(INIT_FNS)}')
    plan = plan_replacements(model, stacks)
    replace_weights(model, plan, INIT_FNS[init])
    return model


def _init_from_weights(
    stack: StackedLinear, weights: Sequence[Tensor]
) -> None:
    fit_matrices(stack, weights, max_iters=0)


@torch.no_grad()
def _init_from_first(stack: StackedLinear, weights: Sequence[Tensor]) -> None:
    if stack.shared is None:
        _init_from_weights(stack, weights)
    else:
        stack.shared.copy_(weights[0])


INIT_FNS: dict[str, InitFn] = {
    'weights': _init_from_weights,
    'first': _init_from_first,
    'fresh': lambda stack, weights: None,
}
