# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint file: behind tools/convert_checkpoint.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from lors_det.convert.models import convert, revert
from lors_det.convert.names import RecognisedModel
from lors_det.convert.weights import read_weights
from lors_det.errors import UsageError
from lors_det.files import check_output
from lors_det.safe_load import load_checkpoint, save_checkpoint

#: Entries of ``dataset_meta`` and their names in mmcv 1.x.
META = {'classes': 'CLASSES', 'palette': 'PALETTE'}


def convert_file(
    source: str,
    target: str,
    to_official: bool = False,
    ema: bool = False,
    trust: bool = False,
    overwrite: bool = False,
) -> Iterator[str]:
    """Convert a checkpoint file of a release to ours, or back.

    Args:
        source: File to read.
        target: File to write; ``.safetensors`` chooses that format.
        to_official: Whether to convert our names to those of a release.
        ema: Whether to take averaged weights.
        trust: Whether the file may run code while it is loaded.
        overwrite: Whether to replace ``target`` if it exists.

    Yields:
        Lines for the user; after a conversion to ours, they are a config.

    Raises:
        UsageError: If a file is missing, wrong or exists already, or the
            checkpoint is no model that can be converted.
    """
    if not overwrite:
        check_output(target, 'DST')
    if not target.endswith(('.pth', '.pt', '.safetensors')):
        raise UsageError(
            f'DST {target}: expected a name ending in .pth or .safetensors'
        )
    checkpoint = load_checkpoint(source, trust=trust)
    state, dropped = read_weights(checkpoint, source, ema)
    result = (revert if to_official else convert)(state, source)
    meta = _meta(checkpoint.get('meta') or {}, to_official)
    save_checkpoint(
        {k: v.contiguous() for k, v in result.state.items()}, meta, target
    )
    yield f'# {source}'
    yield f'# {result.model.summary}'
    for line in (*dropped, *([] if to_official else result.model.notes)):
        yield f'# - {line}'
    for tensor in result.unused:
        yield f'# - not used, not part of the model: {tensor}'
    yield f'# written: {target} ({len(result.state)} tensors)'
    if not to_official:
        yield config_text(result.model)


def config_text(model: RecognisedModel) -> str:
    """Return the text of a config for a model, for a folder of ``configs/``.

    Args:
        model: The model.
    """
    settings = Config({'model': model.settings})
    return f'_base_ = {model.base_config!r}\n\n{settings.pretty_text}'


def _meta(source: Mapping[str, Any], to_official: bool) -> dict[str, Any]:
    """Return class names and colours, under the names of the target.

    The other meta data (config, versions, times) describe another run.
    """
    if to_official:
        ours = source.get('dataset_meta') or {}
        return {META[key]: ours[key] for key in META if ours.get(key)}
    kept = {k: source[name] for k, name in META.items() if source.get(name)}
    return {'dataset_meta': kept} if kept else {}
