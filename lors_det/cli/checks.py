# SPDX-License-Identifier: Apache-2.0
"""Checks before a run: files that are missing, files that would be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lors_det.errors import UsageError

COCO_HELP = (
    'get COCO 2017 with `mim download mmdet --dataset coco2017` or from '
    'https://cocodataset.org, or name another folder in the config '
    '(README, "Train on COCO")'
)


def check_dataset(cfg: Mapping[str, Any], loop: str) -> None:
    """Check that annotations and images of a loop are there.

    Args:
        cfg: The whole config.
        loop: ``train``, ``val`` or ``test``.

    Raises:
        UsageError: If an annotation file or image folder is missing; the text
            says which setting named it.
    """
    key = f'{loop}_dataloader'
    for dataset in datasets_of(cfg, loop):
        if dataset.get('backend_args'):
            continue  # not in the file system: the backend will tell
        root = dataset.get('data_root') or ''
        files = {'ann_file': dataset.get('ann_file') or ''}
        for name, prefix in (dataset.get('data_prefix') or {}).items():
            files[f'data_prefix.{name}'] = prefix
        for name, file in files.items():
            path = Path(root, file)
            if file and '://' not in str(file) and not path.exists():
                raise UsageError(
                    f'{key}.dataset.{name}: {path} does not exist; {COCO_HELP}'
                )


def datasets_of(
    cfg: Mapping[str, Any], loop: str
) -> Iterator[Mapping[str, Any]]:
    """Configs of the data sets of a loop, without what wraps them.

    Args:
        cfg: The whole config.
        loop: ``train``, ``val`` or ``test``.
    """
    outer = (cfg.get(f'{loop}_dataloader') or {}).get('dataset')
    return _unwrap(outer) if outer else iter(())


def _unwrap(dataset: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A dataset's config, or those that it wraps."""
    if 'dataset' in dataset:
        yield from _unwrap(dataset['dataset'])
    elif 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from _unwrap(inner)
    else:
        yield dataset


def check_work_dir(work_dir: str) -> None:
    """Check that a new run overwrites no checkpoint.

    Args:
        work_dir: Folder that the run will write to.

    Raises:
        UsageError: If it holds checkpoints.
    """
    found = sorted(Path(work_dir).glob('*.pth'))
    if found:
        raise UsageError(
            f'{work_dir} holds {len(found)} checkpoints of an earlier run '
            f'({found[-1].name}): --resume goes on with it, --work-dir names '
            'another folder, --overwrite writes over it'
        )
