# SPDX-License-Identifier: Apache-2.0
"""Turn a trained dense decoder into the decoder of LORS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.settings import STACKS
from lors_det.lors import FitReport, StackConfig, factorise
from lors_det.lors.naming import match_module_names

MODULES = {
    'attention': 'attention.*',
    'offsets': 'sampling.*',
    'mixing_kernels': 're:mixing[.](channel|spatial)',
    'mixing_out_proj': 'mixing.out_proj',
    'ffn': 'ffn.*',
    'heads': 'heads.**',
}


def factorise_decoder(
    decoder: AdaMixerDecoder,
    stacks: Mapping[str, Any],
    max_iters: int = 50,
    tol: float = 1e-6,
    inputs: Mapping[str, Sequence[Tensor]] | None = None,
) -> dict[str, FitReport]:
    """Turn a trained dense decoder into LORS, as near as its ranks allow.

    In place. The state dict is then that of a decoder that was built with
    ``stacks``. Numbers of groups and of points stay as they are: dense
    AdaMixer has G = 4 and P_in = 32 and the configs of LORS have 2 and 64,
    which no choice of ranks can change.

    One rank holds for both mixing kernels and is limited by the smaller one:
    with P_in = 32 the spatial kernels (P_out x P_in, 128 x 32) allow at most
    r = 32 and are exact with K = 4, while the channel kernels (64 x 64) would
    need r = 64. `factorise` can give them different ranks.

    Args:
        decoder: With trained dense stacks in the steps that ``stacks`` names.
        stacks: A `StackConfig` or its fields by the name of a step, as for
            `AdaMixerDecoder`.
        max_iters: See `factorise`.
        tol: See `factorise`.
        inputs: See `factorise`.

    Returns:
        Errors of the layers of every stack, by its name in the decoder.

    Raises:
        TypeError: If an entry of ``stacks`` has a wrong type.
        ValueError: If a step is unknown or not dense, or a rank is out of
            range.
    """
    unknown = sorted(set(stacks) - set(STACKS))
    if unknown:
        raise ValueError(
            f'stacks has {unknown}: expected keys out of {list(STACKS)}'
        )
    chosen = {
        MODULES[step]: StackConfig.parse(config, f'stacks.{step}')
        for step, config in stacks.items()
    }
    return factorise(decoder, chosen, max_iters, tol, inputs)


def stacks_of(step: str, names: Iterable[str]) -> list[str]:
    """Return the names of the stacks that a step of the config stands for.

    Args:
        step: A key of ``stacks``.
        names: Names of stacks in the decoder.
    """
    return match_module_names(MODULES[step], names, 'stack')
