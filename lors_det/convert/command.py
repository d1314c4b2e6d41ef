# SPDX-License-Identifier: Apache-2.0
"""Behind tools/convert_checkpoint.py: from file to file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lors_det.convert.detector import (
    Converted,
    convert_detector,
    revert_detector,
)
from lors_det.convert.layout import DetectorLayout
from lors_det.convert.source import read_weights
from lors_det.convert.vit import BASE_CONFIG as VIT_BASE_CONFIG
from lors_det.convert.vit import (
    ConvertedViT,
    ViTLayout,
    convert_vit,
    describe_vit,
    is_vit,
    revert_vit,
)
from lors_det.errors import UsageError
from lors_det.files import check_output
from lors_det.safe_load import load_checkpoint, save_checkpoint

BASE_CONFIG = '../adamixer/adamixer_r50_1x_coco.py'
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
        to_official: Whether to go from our names to those of a release.
        ema: Whether to take averaged weights.
        trust: Whether the file may run code while it is loaded.
        overwrite: Whether ``target`` may be there already.

    Yields:
        Lines for the user; of the conversion to ours, they are a config.

    Raises:
        UsageError: If a file is missing, wrong or in the way, or the
            checkpoint is no detector that can be converted.
    """
    if not overwrite:
        check_output(target, 'DST')
    if not target.endswith(('.pth', '.pt', '.safetensors')):
        raise UsageError(
            f'DST {target}: expected a name ending in .pth or .safetensors'
        )
    checkpoint = load_checkpoint(source, trust=trust)
    state, dropped = read_weights(checkpoint, source, ema)
    change: Callable[[Mapping[str, Tensor], str], Converted | ConvertedViT]
    if is_vit(state):
        change = revert_vit if to_official else convert_vit
    else:
        change = revert_detector if to_official else convert_detector
    result = change(state, source)
    meta = _meta(checkpoint.get('meta') or {}, to_official)
    save_checkpoint(
        {k: v.contiguous() for k, v in result.state.items()}, meta, target
    )
    yield f'# {source}'
    yield f'# {describe(result.layout)}'
    for line in (*dropped, *result.notes, *_unused(result)):
        yield f'# - {line}'
    yield f'# written: {target} ({len(result.state)} tensors)'
    if not to_official:
        yield config_text(result.layout)


def describe(layout: DetectorLayout | ViTLayout) -> str:
    """Say in one line what a detector is.

    Args:
        layout: The detector.
    """
    if isinstance(layout, ViTLayout):
        return describe_vit(layout)
    backbone = layout.model['backbone']
    kind = backbone.get('type', 'ResNet')
    size = backbone.get('depth') or backbone['depths']
    decoder = layout.model['decoder']
    return (
        f'{layout.release}, {kind} {size}, {decoder["num_stages"]} stages, '
        f'{layout.model["num_queries"]} queries, '
        f'{decoder["num_classes"]} classes'
    )


def config_text(layout: DetectorLayout | ViTLayout) -> str:
    """A config for a detector: this project's AdaMixer R50 and what differs.

    Args:
        layout: The detector.

    Returns:
        Text of a file to put into a folder of ``configs/``.
    """
    base = VIT_BASE_CONFIG if isinstance(layout, ViTLayout) else BASE_CONFIG
    return f'_base_ = {base!r}\n\nmodel = {_formatted(layout.model)}'


def _formatted(value: Any, indent: int = 0) -> str:
    """Python text of a setting: ``dict(...)``, one entry to a line."""
    if not isinstance(value, dict):
        return repr(list(value) if isinstance(value, tuple) else value)
    inner = ' ' * (indent + 4)
    entries = ''.join(
        f'{inner}{key}={_formatted(entry, indent + 4)},\n'
        for key, entry in value.items()
    )
    return f'dict(\n{entries}{" " * indent})'


def _unused(result: Converted | ConvertedViT) -> Iterator[str]:
    for tensor in result.unused:
        yield f'not used, the detector has no place for it: {tensor}'


def _meta(source: Mapping[str, Any], to_official: bool) -> dict[str, Any]:
    """Class names and colours, under the names of the other mmdet.

    All else (configs, versions, times) tells of another run.
    """
    if to_official:
        ours = source.get('dataset_meta') or {}
        return {
            theirs: _plain(ours[key])
            for key, theirs in META.items()
            if ours.get(key)
        }
    found = {
        key: _plain(source[theirs])
        for key, theirs in META.items()
        if source.get(theirs)
    }
    return {'dataset_meta': found} if found else {}


def _plain(value: Any) -> Any:
    """Lists in place of tuples: what JSON can hold."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
