# SPDX-License-Identifier: Apache-2.0
"""Convert detectors and classifiers of the releases to ours and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lors_det.convert.detector import recognise_detector
from lors_det.convert.detector_names import names_of_official
from lors_det.convert.names import RecognisedModel, Shapes
from lors_det.convert.vit import recognise_vit, vit_names
from lors_det.errors import UsageError, one_line

HINT = (
    '; the stacks that the releases have are dense, or LORS (of detectors: '
    'those of the mixing) with a private part in every layer'
)


@dataclass(frozen=True)
class Converted:
    """A converted model.

    Args:
        state: The tensors under their new names.
        model: What the model is.
        unused: Source tensors that are not part of it, with their shapes.
    """

    state: dict[str, Tensor]
    model: RecognisedModel
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
    find_names = vit_names if _is_vit(state) else names_of_official
    with _naming(file):
        names = find_names(Shapes(state))
    with _naming(file, names.official):
        ours = names.to_ours(state)
        model = _recognise(ours)
        expected = names.to_official(model.state)
        unused = _check(state, expected, model)
        return Converted({k: ours[k] for k in model.state}, model, unused)


def revert(state: Mapping[str, Tensor], file: str) -> Converted:
    """Convert a model of ours to the names of a release.

    Args:
        state: Our tensors by name.
        file: Name of the file, for error messages.

    Raises:
        UsageError: If no release has such a model, a tensor is missing, or
            has a shape that does not fit.
    """
    with _naming(file, hint=HINT):
        model = _recognise(state)
        unused = _check(state, model.state, model, HINT)
        ours = {name: state[name] for name in model.state}
        return Converted(model.names.to_official(ours), model, unused)


def _is_vit(state: Mapping[str, Tensor]) -> bool:
    """Return whether it is a classifier, of a release or ours."""
    return 'backbone.cls_token' in state or 'embed.cls_token' in state


def _recognise(ours: Mapping[str, Tensor]) -> RecognisedModel:
    recognise = recognise_vit if _is_vit(ours) else recognise_detector
    return recognise(Shapes(ours))


def _check(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    model: RecognisedModel,
    hint: str = '',
) -> list[str]:
    """Compare with the tensors of the model that was recognised.

    Returns:
        Tensors that are no part of it, with their shapes.
    """
    missing = [name for name in expected if name not in state]
    if missing:
        raise UsageError(
            f'it lacks {len(missing)} of the {len(expected)} tensors of this '
            f'model ({model.summary}): {_first(missing)}{hint}'
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise UsageError(
                f'{name} is {tuple(state[name].shape)}, but by the other '
                f'tensors the model is {model.summary}, where it is '
                f'{tuple(tensor.shape)}'
            )
    unused = [
        f'{name} {tuple(value.shape)}'
        for name, value in state.items()
        if name not in expected
    ]
    parts = tuple({f'{name.split(".")[0]}.' for name in expected})
    extra = [tensor for tensor in unused if tensor.startswith(parts)]
    if extra:
        raise UsageError(
            f'it has also {_first(extra)}: not part of this model '
            f'({model.summary}), whose outputs would depend on it'
        )
    return unused


@contextmanager
def _naming(
    file: str, rename: Callable[[str], str] = str, hint: str = ''
) -> Iterator[None]:
    """Name the file in errors, also in those of shapes that fit no model.

    Args:
        file: The file.
        rename: Turns the name of a missing tensor into that of the file.
        hint: What to add where a tensor is missing.
    """
    try:
        yield
    except UsageError as error:
        raise UsageError(f'{file}: {error}') from None
    except KeyError as error:
        name = rename(error.args[0])
        raise UsageError(f'{file} has no tensor {name}{hint}') from None
    except Exception as error:  # whatever builds a model may raise it
        raise UsageError(
            f'{file}: the shapes of its tensors fit no model: '
            f'{one_line(error)}'
        ) from error


def _first(names: list[str]) -> str:
    """Return the first names and the number of the others."""
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    return ', '.join(names[:4]) + more
