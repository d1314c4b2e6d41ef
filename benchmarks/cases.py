# SPDX-License-Identifier: Apache-2.0
"""The compared variants and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

CONFIG_DIR = Path(__file__).parents[1] / 'configs'
PARTS = ('mixing', 'decoder')
MODES = ('forward', 'train')
HALF = ('bfloat16', 'float16')
DTYPES = ('float32', *HALF)


class Variant(NamedTuple):
    """One way to compute a decoder.

    Args:
        model: Which weights: ``dense`` (AdaMixer: 4 groups, 32 points),
            ``lors`` (LORS: 2 groups, 64 points), ``dense-g2`` (dense at the
            shape of LORS), ``lors-g4`` (LORS at the shape of AdaMixer),
            ``folded`` and ``folded-all`` (LORS with its sums written down,
            without and with those of the generators), ``folded-g4``
            (``lors-g4`` with its static sums written down).
        way: How they are used: ``eager``; ``plain``, by docs/method.py;
            ``with_cp``, the decoder's switch; ``compiled`` by torch.compile;
            ``graphed``, recorded as a CUDA graph.
    """

    model: str
    way: str = 'eager'


VARIANTS = {
    'dense': Variant('dense'),
    'dense-plain': Variant('dense', 'plain'),
    'dense-compiled': Variant('dense', 'compiled'),
    'dense-graphed': Variant('dense', 'graphed'),
    'dense-g2': Variant('dense-g2'),
    'reference': Variant('lors', 'plain'),
    'lors': Variant('lors'),
    'lors-cp': Variant('lors', 'with_cp'),
    'lors-g4': Variant('lors-g4'),
    'lors-folded': Variant('folded'),
    'lors-g4-folded': Variant('folded-g4'),
    'lors-folded-all': Variant('folded-all'),
    'lors-compiled': Variant('lors', 'compiled'),
    'lors-graphed': Variant('lors', 'graphed'),
    'lors-g4-compiled': Variant('lors-g4', 'compiled'),
    'lors-g4-graphed': Variant('lors-g4', 'graphed'),
}


@dataclass(frozen=True)
class Case:
    """One shape, and the variants that are compared at it.

    Args:
        part: ``mixing`` (of all stages) or the whole ``decoder``.
        mode: ``forward``, or ``train``: forward and backward.
        variants: Names out of `VARIANTS`; ratios are against the first.
        device: Where it runs.
        dtype: One of `DTYPES`; those of 16 bits are autocast, and in the
            mode ``forward`` the matrices are stored in them too.
        batch: Number B of images.
        queries: Number N of queries of an image.
        stages: Number of stages.
        rank: Rank r of the generated matrices' low-rank terms.
        num_param_groups: Number K of these terms in every stage; None for
            the default, which rises from 1 to 3.
        image_size: Height and width in pixels, for the decoder.
        rounds: How often each variant is timed.
    """

    part: str
    mode: str
    variants: tuple[str, ...]
    device: str = 'cpu'
    dtype: str = 'float32'
    batch: int = 1
    queries: int = 100
    stages: int = 6
    rank: int = 16
    num_param_groups: int | None = None
    image_size: tuple[int, int] = (800, 1344)
    rounds: int = 9

    @property
    def label(self) -> str:
        """Return a title that tells cases apart."""
        return (
            f'{self.part} {self.mode}, batch {self.batch}, '
            f'{self.queries} queries, {self.stages} stages, rank {self.rank}, '
            f'K {self.num_param_groups or "rising"}, {self.dtype}, '
            f'{self.device.split(":")[0]}'
        )

    def settings(self, model: str) -> dict[str, Any]:
        """Return the decoder's settings, from the configs that users train.

        Args:
            model: See `Variant`.
        """
        lors = decoder_settings('lors/lors-adamixer_r50_1x_coco.py')
        kernels = lors['stacks']['mixing_kernels']
        kernels['rank'] = self.rank
        if self.num_param_groups is not None:
            kernels['num_param_groups'] = self.num_param_groups
        stacks = {} if model.startswith('dense') else lors['stacks']
        dense = decoder_settings('_base_/models/adamixer_r50.py')
        found = dense if model == 'dense' or model.endswith('-g4') else lors
        return {**found, 'stacks': stacks, 'num_stages': self.stages}


def decoder_settings(name: str) -> dict[str, Any]:
    """Read the decoder's settings from a config, by its name in configs/."""
    settings = Config.fromfile(CONFIG_DIR / name).model.decoder.to_dict()
    del settings['type']
    return dict(settings)


#: What docs/performance.md compares on a processor.
COMPARED = (
    Case('mixing', 'forward', (
        'dense', 'dense-plain', 'dense-g2', 'reference', 'lors', 'lors-g4',
        'lors-folded', 'lors-g4-folded', 'lors-folded-all'), rounds=15),
    *(Case('mixing', 'forward', ('dense', 'dense-plain', 'lors', 'lors-g4'),
           batch=2, queries=queries) for queries in (100, 300)),
    Case('mixing', 'train', (
        'dense', 'dense-plain', 'dense-g2', 'reference', 'lors', 'lors-cp',
        'lors-g4')),
    Case('mixing', 'train', ('dense', 'dense-plain', 'lors', 'lors-g4'),
         batch=2, rounds=7),
    Case('mixing', 'train', (
        'dense', 'dense-plain', 'reference', 'lors', 'lors-cp', 'lors-g4'),
         batch=2, queries=300, rounds=5),
    Case('decoder', 'forward', (
        'dense', 'dense-plain', 'reference', 'lors', 'lors-g4', 'lors-folded',
        'lors-folded-all')),
    Case('decoder', 'train', (
        'dense', 'dense-plain', 'reference', 'lors', 'lors-cp', 'lors-g4'),
         batch=2, rounds=5),
)  # fmt: skip
