# SPDX-License-Identifier: Apache-2.0
"""From a trained dense decoder to the decoder of LORS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lors_det.adamixer.decoder import AdaMixerDecoder
from lors_det.adamixer.settings import STACKS
from lors_det.lors import FitReport, StackConfig, factorise

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
) -> dict[str, FitReport]:
    """Turn a dense decoder into that of LORS, as near as its ranks allow.

    In place. The decoder is then one that was built with ``stacks``, its
    state dict fits there. Number of groups and of points stay: dense AdaMixer
    has G = 4 and P_in = 32, the configs of LORS 2 and 64, which is another
    architecture and not a matter of ranks.

    One term of the spatial kernels (P_out x P_in, 128 x 32) has at most rank
    32 in its rows too. So exact are r = 32 and K = 4 there, where the channel
    kernels (64 x 64) need r = 64: the two share one setting, and ``rank``
    is limited by the smaller. `factorise` takes them apart.

    Args:
        decoder: With trained dense stacks, on the steps to be changed.
        stacks: `StackConfig` or its fields by the name of a step, as
            `AdaMixerDecoder` has them.
        max_iters: See `factorise`.
        tol: See `factorise`.

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
    return factorise(decoder, chosen, max_iters, tol)
