# SPDX-License-Identifier: Apache-2.0
"""Convert detectors and classifiers of the releases to ours and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lors_det.convert.detector import detector_renames, recognise_detector
from lors_det.convert.tensors import (
    OfficialModel,
    Shapes,
    to_official,
    to_ours,
)
from lors_det.convert.vit import recognise_vit, vit_renames
from lors_det.errors import UsageError


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Args:
        state: The tensors under their new names.
        model: What the model is.
        unused: Source tensors that are not part of it, with their shapes.
    """

    state: dict[str, Tensor]
    model: OfficialModel
    unused: list[str]


def convert(state: Mapping[str, Tensor], file: str) -> Converted:
    """Convert a model of a release to our names.

    Args:
        state: Tensors by their official names.
        file: Name of the file, for error messages.

    Raises:
        UsageError: If it is no model of a release, lacks a tensor, or has one
            whose shape does not fit.
    """
    if any(name.startswith(('decoder.mixing.', 'embed.')) for name in state):
        raise UsageError(
            f'{file} is a checkpoint of this project already; --to-official '
            'converts it to the names of the releases'
        )
    with _naming(file):
        model, unused = _recognise(state)
        return Converted(to_ours(state, model.renames), model, unused)


def revert(state: Mapping[str, Tensor], file: str) -> Converted:
    """Convert a model of ours to the names of a release.

    Args:
        state: Our tensors by name.
        file: Name of the file, for error messages.

    Raises:
        UsageError: If no release has such a model, a tensor is missing, or
            has a shape that does not fit.
    """
    with _naming(file):
        find_renames = vit_renames if _is_vit(state) else detector_renames
        renames = find_renames(Shapes(state))
        names = [name for rename in renames for name in rename.ours]
        missing = [name for name in names if name not in state]
        if missing:
            raise UsageError(
                f'it lacks {len(missing)} tensors that the models of the '
                f'releases have: {_first(missing)}; their stacks are dense, '
                'or LORS (of detectors: those of the mixing) with a private '
                'part in every layer'
            )
        official = to_official(state, renames)
        model, _ = _recognise(official)
        return Converted(official, model, _others(state, names))


def _is_vit(state: Mapping[str, Tensor]) -> bool:
    """Return whether it is a classifier, of a release or ours."""
    return 'backbone.cls_token' in state or 'embed.cls_token' in state


def _recognise(
    state: Mapping[str, Tensor],
) -> tuple[OfficialModel, list[str]]:
    """Recognise a model, and check its tensors against one built for it.

    Returns:
        The model, and the tensors that are not part of it.
    """
    recognise = recognise_vit if _is_vit(state) else recognise_detector
    model = recognise(state)
    expected = to_official(model.state, model.renames)
    missing = [name for name in expected if name not in state]
    if missing:
        raise UsageError(
            f'it lacks {len(missing)} of the {len(expected)} tensors of this '
            f'model ({model.summary}): {_first(missing)}'
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UsageError(
                f'{name} is {tuple(state[name].shape)}, but by the other '
                f'tensors the model is {model.summary}, where it is '
                f'{tuple(tensor.shape)}'
            )
    unused = _others(state, expected)
    extra = [x for x in unused if x.startswith(('backbone.', 'head.'))]
    if extra:
        raise UsageError(
            f'it has also {_first(extra)}: not part of this model '
            f'({model.summary}), whose outputs would depend on it'
        )
    return model, unused


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Name the file in errors, also in those of shapes that fit no model."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f'{file}: {error}') from None
    except KeyError as error:
        raise UsageError(f'{file} has no tensor {error.args[0]}') from None
    except (
        AssertionError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as error:
        reason = ' '.join(str(error).split())  # one line
        raise UsageError(
            f'{file}: the shapes of its tensors fit no model: {reason}'
        ) from None


def _others(state: Mapping[str, Tensor], names: Collection[str]) -> list[str]:
    """Return the tensors that are not named, with their shapes."""
    return [
        f'{name} {tuple(value.shape)}'
        for name, value in state.items()
        if name not in names
    ]


def _first(names: list[str]) -> str:
    """Return the first names and the number of the others."""
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return ', '.join(names[:4]) + more
