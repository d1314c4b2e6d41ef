# SPDX-License-Identifier: Apache-2.0
"""Put the weights of a list of identical layers on stacks, in any model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lors_det.lors.fit import fill
from lors_det.lors.stacks import StackedLinear
from lors_det.lors.targets import Filler, replace, targets

Model = TypeVar('Model', bound=nn.Module)
INITS = {
    'weights': 'fitted to the present weights',
    'first': "the first layer's weights as the shared part, no residual",
    'fresh': 'drawn as for a new stack',
}


def lorsify(
    model: Model,
    stacks: Mapping[str, Mapping[str, Any]],
    init: str = 'weights',
) -> Model:
    """Put weights of identical layers on stacks, in place.

    Each weight that is named is N weights, one per layer; one
    `StackedLinear` takes their place. It is registered once, in a
    `LayerStacks` next to the list (``layers`` -> ``layers_stacks``), and the
    layers read their weight from it: forward, deep copies, ``to``, autocast,
    DDP, compilation and checkpointing work as before. Biases and everything
    that is not named stay with their layers. Build the optimiser after this.

    A kernel of a convolution is a matrix (out, in / groups * k * k).
    ``nn.MultiheadAttention`` stands for its projection of the input (packed,
    or one each for query, key and value) and that of the output.

    Source: LORS (arXiv:2403.04303), static structure (LORS-T), for any stack.

    Args:
        model: It becomes the model on stacks.
        stacks: For the name of a ``ModuleList`` or ``Sequential`` of
            identical layers, where its weights come from: for the name of a
            module inside of a layer (``nn.Linear``, convolution,
            ``nn.MultiheadAttention``) or of one parameter of it, a
            `StackConfig` or a dict of its fields. Names may be patterns: see
            `find`.
        init: Values to start with. ``weights``: those nearest to the present
            weights (mean, and truncated residuals; `factorise` goes
            further). ``first``: the shared part is the present weight of the
            first layer and residuals start at zero, which keeps the model's
            own law of initial values; stacks without shared part are
            ``weights``. ``fresh``: as `StackedLinear` draws them.

    Returns:
        The same model.

    Raises:
        TypeError: If a mapping is none, or a module is not supported.
        ValueError: If a name matches nothing, layers differ, a weight is on
            a stack already or named twice, a rank is above the matrix, or
            ``init`` is unknown. The model is unchanged then.

    Example:
        >>> layer = nn.TransformerEncoderLayer(64, 4, 128)
        >>> model = nn.TransformerEncoder(layer, 6)
        >>> config = dict(mode='lors', rank=4)
        >>> model = lorsify(
        ...     model, {'layers': {'self_attn': config, 'linear?': config}}
        ... )
    """
    if init not in INITS:
        raise ValueError(
            f'init={init!r}: expected one of '
            + ', '.join(f'{name!r} ({text})' for name, text in INITS.items())
        )
    fillers: dict[str, Filler] = {
        'weights': lambda stack, weights: fill(stack, weights, max_iters=0),
        'first': _first,
        'fresh': lambda stack, weights: None,
    }
    replace(targets(model, stacks), fillers[init])
    return model


@torch.no_grad()
def _first(stack: StackedLinear, weights: Sequence[Tensor]) -> None:
    if stack.shared is None:
        fill(stack, weights, max_iters=0)
    else:
        stack.shared.copy_(weights[0])
