# SPDX-License-Identifier: Apache-2.0
"""Whole detectors from the releases' names to ours and back, strictly."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

import lors_det.adamixer  # noqa: F401  # registers the detector's parts
from lors_det.adamixer.queries import InitialQueries
from lors_det.convert.layout import (
    DetectorLayout,
    detector_layout,
    layout_of_ours,
)
from lors_det.convert.official import (
    Pair,
    decoder_pairs,
    from_official,
    neck_pairs,
    to_official,
)
from lors_det.convert.shapes import Shapes, inferring
from lors_det.errors import UsageError


@dataclass(frozen=True)
class Converted:
    """A converted detector.

    Args:
        state: The tensors under their new names.
        layout: What the detector is.
        unused: Source tensors that the detector has no place for.
        notes: What its user should know.
    """

    state: dict[str, Tensor]
    layout: DetectorLayout
    unused: list[str]
    notes: list[str]


def convert_detector(state: Mapping[str, Tensor], source: str) -> Converted:
    """From the names of a release to ours.

    Args:
        state: Tensors by their official names.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If it is no detector of a release, lacks a tensor, or has
            one whose shape does not fit.
    """
    with inferring(source):
        layout = detector_layout(Shapes(state, source))
    pairs, unused = _fit(state, layout, source)
    ours = from_official(state, iter(pairs))
    table = ours['queries.boxes']
    constant = InitialQueries(len(table), 8).boxes
    same = torch.equal(table.float(), constant)
    note = (
        'the initial boxes are the constant of the releases'
        if same
        else 'the initial boxes are not the constant of the releases: kept '
        'in queries.boxes'
    )
    return Converted(ours, layout, unused, [note])


def revert_detector(state: Mapping[str, Tensor], source: str) -> Converted:
    """From our names to those of a release.

    Args:
        state: Our tensors by name.
        source: Name of the file, for error messages.

    Raises:
        UsageError: If no release has such a detector, a tensor is missing,
            or has a shape that does not fit.
    """
    with inferring(source):
        decoder = layout_of_ours(state, source)
    num_levels = Shapes(state, source).count('neck.convs.{}.weight')
    pairs = [
        *decoder_pairs(decoder),
        *neck_pairs(num_levels),
        *_same_names(name for name in state if name.startswith('backbone.')),
    ]
    try:
        theirs = to_official(state, iter(pairs))
    except RuntimeError as error:
        raise UsageError(
            f'{source}: the shapes of the mixing generators do not fit each '
            f'other: {error}'
        ) from None
    missing = [
        name for pair in pairs for name in pair.ours if name not in state
    ]
    if missing:
        raise UsageError(
            f'{source} lacks {len(missing)} tensors that every detector of '
            f'the releases has: {_some(missing)}; they have dense weights '
            'outside of the mixing, and a private part in every stage'
        )
    with inferring(source):
        layout = detector_layout(Shapes(theirs, source))
    _, unused = _fit(theirs, layout, source)
    known = {name for pair in pairs for name in pair.ours}
    unused += [f'{k} {tuple(state[k].shape)}' for k in state if k not in known]
    return Converted(theirs, layout, unused, [])


def build_empty(layout: DetectorLayout) -> nn.Module:
    """The parts of a detector that have weights, with values of no use.

    Args:
        layout: What the detector is.

    Returns:
        A module whose state dict has the detector's names and shapes.
    """
    # Merging is what a config does with its base.
    model = Config({'backbone': {'type': 'ResNet'}, 'decoder': {'stacks': {}}})
    model.merge_from_dict(copy.deepcopy(layout.model))
    # Not on the meta device: Swin computes its drop path rates with tensors.
    backbone = MODELS.build(model['backbone'])
    with torch.device('meta'):
        neck = MODELS.build({'type': 'SharedNormMapper', **model['neck']})
        decoder = MODELS.build({'type': 'AdaMixerDecoder', **model['decoder']})
        queries = InitialQueries(model['num_queries'], decoder.embed_dims)
    return nn.ModuleDict(
        {
            'backbone': backbone,
            'neck': neck,
            'queries': queries,
            'decoder': decoder,
        }
    )


def _fit(
    state: Mapping[str, Tensor], layout: DetectorLayout, source: str
) -> tuple[list[Pair], list[str]]:
    """Check official tensors against a detector built for them.

    Returns:
        What is what, and the tensors without a place.
    """
    try:
        target = build_empty(layout).state_dict()
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(
            f'{source}: its shapes make no detector: {error}'
        ) from None
    pairs = [
        *decoder_pairs(layout.decoder),
        *neck_pairs(len(layout.model['neck']['in_channels'])),
        *_same_names(name for name in target if name.startswith('backbone.')),
    ]
    filled = {name for pair in pairs for name in pair.ours}
    assert filled == set(target), filled ^ set(target)
    expected = to_official(target, iter(pairs))
    missing = [name for name in expected if name not in state]
    if missing:
        raise UsageError(
            f'{source} lacks {len(missing)} of the {len(expected)} tensors '
            f'of a {layout.release} detector: {_some(missing)}'
        )
    for pair in pairs:
        found = tuple(state[pair.official].shape)
        fits = tuple(expected[pair.official].shape)
        if found != fits:
            raise UsageError(
                f'{source}: {pair.official} is {found}, '
                f'{" and ".join(pair.ours)} of the detector that the other '
                f'tensors make would be {fits}'
            )
    unused = [
        f'{name} {tuple(value.shape)}'
        for name, value in state.items()
        if name not in expected
    ]
    return pairs, unused


def _same_names(names: Iterable[str]) -> list[Pair]:
    return [Pair(name, (name,)) for name in names]


def _some(names: list[str]) -> str:
    """The first names, and how many more."""
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return ', '.join(names[:4]) + more
