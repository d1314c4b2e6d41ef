# SPDX-License-Identifier: Apache-2.0
"""The ways to compute a decoder that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature

from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.mixing import RECOMPUTE

#: What the decoder recomputes if it is not told.
DEFAULT = signature(AdaMixerDecoder).parameters['recompute'].default


@dataclass(frozen=True)
class Variant:
    """One way to compute the same thing.

    Args:
        model: Which parameters: ``dense`` (AdaMixer's shape), ``dense-g2``
            (dense at LORS's shape), ``lors``, or ``folded``: LORS with its
            static sums written down, and ``folded-all``: its generators too.
        plain: Whether the reference runs, or our code.
        recompute: Value of the decoder's switch; None for its default.
        runner: ``eager``, ``compiled``, or ``graphed`` (a CUDA graph).
        fused: Whether our mixing runs in one Triton kernel.
    """

    model: str
    plain: bool = False
    recompute: str | None = None
    runner: str = 'eager'
    fused: bool = False

    @property
    def needs_gpu(self) -> bool:
        """Whether there is no such thing on a CPU."""
        return self.fused or self.runner == 'graphed'


VARIANTS = {
    'reference': Variant('lors', plain=True),
    'lors': Variant('lors'),
    **{
        f'lors-{how}': Variant('lors', recompute=how)
        for how in RECOMPUTE
        if how != DEFAULT
    },
    'lors-fused': Variant('lors', fused=True),
    'lors-folded': Variant('folded'),
    'lors-folded-all': Variant('folded-all'),
    'lors-compiled': Variant('lors', runner='compiled'),
    'lors-graphed': Variant('folded', runner='graphed'),
    'lors-fused-graphed': Variant('folded', runner='graphed', fused=True),
    'dense': Variant('dense', recompute='none'),
    'dense-g2': Variant('dense-g2', recompute='none'),
    'dense-plain': Variant('dense', plain=True),
    'dense-fused': Variant('dense', recompute='none', fused=True),
    'dense-compiled': Variant('dense', runner='compiled'),
    'dense-graphed': Variant('dense', runner='graphed'),
    'dense-fused-graphed': Variant('dense', runner='graphed', fused=True),
}
#: Variants that change weights, or cannot run backward.
FORWARD_ONLY = [
    name
    for name, variant in VARIANTS.items()
    if variant.model.startswith('folded') or variant.runner == 'graphed'
]
