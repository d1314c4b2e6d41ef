# SPDX-License-Identifier: Apache-2.0
"""Checks before a run is built, of what no component checks itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner
from torch.utils.data import DataLoader

from lors_det.cli.boundary import suggest
from lors_det.datasets.annotations import check_annotations, read_annotations
from lors_det.errors import UsageError

COCO_HELP = (
    'get COCO 2017 with `mim download mmdet --dataset coco2017` or from '
    'https://cocodataset.org, or name another folder in the config '
    '(README, "Train on COCO")'
)
#: What is read from dicts that no class takes as its arguments, besides what
#: the runner and the loader take; '' is the config itself.
READ = {
    '': 'activation_checkpointing compile custom_imports '
    'efficient_conv_bn_eval find_unused_parameters model_wrapper_cfg sync_bn',
    'auto_scale_lr': 'enable base_batch_size',
    'clip_grad': 'type max_norm norm_type error_if_nonfinite clip_value',
    'data_prefix': 'img seg',
    'dataloader': 'num_batch_per_epoch disable_subprocess_warning',
    'env_cfg': 'cudnn_benchmark mp_cfg dist_cfg resource_limit',
    'filter_cfg': 'filter_empty_gt min_size',
    'metainfo': 'classes palette',
    'paramwise_cfg': 'bias_decay_mult bias_lr_mult bypass_duplicate '
    'custom_keys dcn_offset_lr_mult dwconv_decay_mult flat_decay_mult '
    'norm_decay_mult',
    'randomness': 'seed diff_rank_seed deterministic',
}


def check_options(
    cfg: Mapping[str, Any],
    options: Mapping[str, Any],
    source: str = '--cfg-options',
) -> None:
    """Check that something reads the settings that change a config.

    A part that is built from a dict with ``type`` refuses a key that it does
    not know; this looks at the other dicts.

    Args:
        cfg: The config without the options.
        options: Values by ``key.path``.
        source: Where they are from, for messages.

    Raises:
        UsageError: If nothing reads a key.
    """
    for option, value in options.items():
        node: Any = dict(cfg)
        parent = ''
        for name in option.split('.'):
            read = _keys_read(parent)
            if isinstance(node, list):
                node = {str(i): entry for i, entry in enumerate(node)}
            if not isinstance(node, Mapping) or name == '_delete_':
                break
            if read and name not in read and name not in node:
                raise UsageError(
                    f'{source} {option}={value!r}: nothing reads '
                    f'{name!r}{suggest(name, (*read, *node))}'
                )
            node, parent = node.get(name, {}), name


def _keys_read(parent: str) -> list[str]:
    """Return what is read from a dict of this name; nothing if unknown."""
    kind = 'dataloader' if parent.endswith('_dataloader') else parent
    taker = {'': Runner.__init__, 'dataloader': DataLoader}.get(kind)
    taken = inspect.signature(taker).parameters if taker else ()
    return [*taken, *READ.get(kind, '').split()]


def check_clipping(cfg: Mapping[str, Any]) -> None:
    """Check that clipping does not turn the gradient round.

    Args:
        cfg: The whole config.

    Raises:
        UsageError: If the largest norm is negative.
    """
    clip = (cfg.get('optim_wrapper') or {}).get('clip_grad') or {}
    norm = clip.get('max_norm', 1)
    if not isinstance(norm, (int, float)) or not norm > 0:
        raise UsageError(
            f'CONFIG: optim_wrapper.clip_grad.max_norm={norm!r}: expected a '
            'number above 0'
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


def check_evaluator(cfg: Mapping[str, Any], loop: str) -> None:
    """Check that the metric reads the annotations of the loader's images.

    Args:
        cfg: The whole config.
        loop: ``val`` or ``test``.

    Raises:
        UsageError: If its file is missing, cannot be used, or lacks an image.
    """
    found = cfg.get(f'{loop}_evaluator') or {}
    loaded = [
        Path(each.get('data_root') or '', each['ann_file'])
        for each in datasets_of(cfg, loop)
        if each.get('ann_file') and not each.get('backend_args')
    ]
    for metric in found if isinstance(found, list) else [found]:
        file = metric.get('ann_file')
        if not file or '://' in file or metric.get('backend_args'):
            continue
        if any(Path(file).resolve() == each.resolve() for each in loaded):
            continue  # the data set checks it
        name = f'CONFIG: {loop}_evaluator.ann_file={file!r}'
        content = read_annotations(file, name)
        check_annotations(content).raise_refused(name)
        known = _image_names(content)
        for path in loaded:
            missing = (
                _image_names(read_annotations(str(path), str(path))) - known
            )
            if missing:
                raise UsageError(
                    f'{name}: {len(missing)} images of {path} are not in it, '
                    f'like {min(missing)!r}; expected the annotations of '
                    f'{loop}_dataloader'
                )


def _image_names(content: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {
        (str(each.get('id')), str(each.get('file_name')))
        for each in content['images']
    }


def datasets_of(
    cfg: Mapping[str, Any], loop: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of a loop's data sets, without what wraps them.

    Args:
        cfg: The whole config.
        loop: ``train``, ``val`` or ``test``.
    """
    outer = (cfg.get(f'{loop}_dataloader') or {}).get('dataset')
    waiting = [outer] if outer else []
    while waiting:
        dataset = waiting.pop(0)
        if 'dataset' in dataset:
            waiting.insert(0, dataset['dataset'])
        elif 'datasets' in dataset:
            waiting[:0] = dataset['datasets']
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
            f'({found[-1].name}): --resume continues it, --work-dir names '
            'another folder, --overwrite writes over it'
        )
