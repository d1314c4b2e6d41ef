# SPDX-License-Identifier: Apache-2.0
"""Settings of a run, and checks of what no component checks itself.

Imports no torch: what can be refused without it is refused at once.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from lors_det.cli.boundary import OneLineErrors, suggest, walk_config
from lors_det.datasets.annotations import check_annotations, read_annotations
from lors_det.errors import UsageError
from lors_det.files import load_config

#: What is right for settings that nothing else checks, or only late.
UNCHECKED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'model': ('a dict', lambda v: isinstance(v, Mapping)),
    r'optim_wrapper\.clip_grad\.max_norm': (
        'a number above 0',
        lambda v: isinstance(v, (int, float)) and v > 0,
    ),
    r'.*\.(gamma|milestones.*)': ('numbers', lambda v: not isinstance(v, str)),
    'resume': ('True or False', lambda v: not isinstance(v, str)),
    'launcher': (
        'torchrun to start it, as tools/dist_train.sh does',
        lambda v: v != 'pytorch' or 'RANK' in os.environ,
    ),
}
LOADER = (
    'batch_sampler batch_size collate_fn dataset disable_subprocess_warning '
    'drop_last generator in_order multiprocessing_context num_batch_per_epoch '
    'num_workers persistent_workers pin_memory pin_memory_device '
    'prefetch_factor sampler shuffle timeout worker_init_fn'
)
#: What is read from dicts that nothing else checks; '' is the config itself.
READ = {
    '': 'model work_dir train_dataloader val_dataloader test_dataloader '
    'train_cfg val_cfg test_cfg auto_scale_lr optim_wrapper param_scheduler '
    'val_evaluator test_evaluator default_hooks custom_hooks '
    'data_preprocessor load_from resume launcher env_cfg log_processor '
    'log_level visualizer default_scope randomness experiment_name cfg '
    'activation_checkpointing compile custom_imports efficient_conv_bn_eval '
    'find_unused_parameters model_wrapper_cfg sync_bn',
    'auto_scale_lr': 'enable base_batch_size',
    'clip_grad': 'type max_norm norm_type error_if_nonfinite clip_value',
    'data_prefix': 'img seg',
    **{f'{loop}_dataloader': LOADER for loop in ('train', 'val', 'test')},
    'env_cfg': 'cudnn_benchmark mp_cfg dist_cfg resource_limit',
    'filter_cfg': 'filter_empty_gt min_size',
    'metainfo': 'classes palette',
    'paramwise_cfg': 'bias_decay_mult bias_lr_mult bypass_duplicate '
    'custom_keys dcn_offset_lr_mult dwconv_decay_mult flat_decay_mult '
    'norm_decay_mult',
    'randomness': 'seed diff_rank_seed deterministic',
}


def configure(
    args: argparse.Namespace, errors: OneLineErrors, loops: Sequence[str]
) -> Any:
    """Return the ``Config`` of a run: its file and what the options change.

    Prints the first line of a run. What ``custom_imports`` name is left to
    `build_runner`: it takes seconds to import.

    Args:
        args: Parsed arguments.
        errors: Learns what the config is.
        loops: Whose data must be there: ``train``, ``val``, ``test``.

    Raises:
        UsageError: If the config, an option or a file cannot be used.
    """
    if os.environ.get('RANK', '0') == '0':
        print('config', args.config, flush=True)
    cfg = errors.cfg = load_config(args.config, imports=False)
    check_options(cfg, args.cfg_options)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    _check_values(cfg)
    default = str(Path('work_dirs', Path(args.config).stem))
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or default
    if 'compile' in cfg and cfg.model.get('type') == 'AdaMixer':
        # mmengine would compile the training step, and matching with it.
        cfg.model.compile = cfg.pop('compile')
    for loop in loops:
        check_dataset(cfg, loop)
        _check_evaluator(cfg, loop)
    return cfg


def check_options(
    cfg: Mapping[str, Any],
    options: Mapping[str, Any],
    source: str = '--cfg-options',
) -> None:
    """Check that the settings that change a config have an effect.

    A part that is built from a dict with ``type`` refuses a key that it does
    not know; this looks at the other dicts, and at variables of the file.

    Args:
        cfg: The config without the options.
        options: Values by ``key.path``.
        source: Where they are from, for messages.

    Raises:
        UsageError: If nothing reads a key, or a dict becomes something else.
    """
    entries = dict(walk_config(dict(cfg)))
    for option, value in options.items():
        what = f'{source} {option}={value!r}'
        path: tuple[str, ...] = ()
        for name in option.split('.'):
            read = READ.get(path[-1] if path else '', '').split()
            is_new = not path or (*path, name) not in entries
            path = (*path, name)
            if read and is_new and name not in (*read, '_delete_'):
                near = _elsewhere(entries, name) or suggest(name, read)
                raise UsageError(f'{what}: nothing reads {name!r}{near}')
        is_dict = isinstance(entries.get(path), Mapping)
        if is_dict and 'type' not in entries[path[:-1]]:  # no class checks it
            if not isinstance(value, (Mapping, bool, NoneType)):
                raise UsageError(f'{what}: expected a dict')


def _elsewhere(entries: Mapping[tuple[str, ...], Any], name: str) -> str:
    """Say which settings have a name, or the value of a variable."""
    value = entries.get((name,))
    is_plain = value in (None, True, False)  # as many settings are
    found = [
        '.'.join(path)
        for path, node in entries.items()
        if path[:1] and path[0] in READ[''].split()
        if path[-1] == name or (node == value and not is_plain)
    ]
    return f'; there is {", ".join(found[:3])}' if found else ''


def _check_values(cfg: Mapping[str, Any]) -> None:
    """Check settings whose wrong values have no effect, or a late one."""
    for path, value in walk_config({'model': None, **cfg}):
        key = '.'.join(path)
        for pattern, (what, is_right) in UNCHECKED.items():
            if re.fullmatch(pattern, key) and not is_right(value):
                raise UsageError(f'CONFIG: {key}={value!r}: expected {what}')


def check_dataset(cfg: Mapping[str, Any], loop: str) -> None:
    """Check that the annotation files of a loop are there.

    Args:
        cfg: The whole config.
        loop: ``train``, ``val`` or ``test``.

    Raises:
        UsageError: If a file is missing.
    """
    for path in filter(None, map(_annotations, datasets_of(cfg, loop))):
        if not path.exists():
            raise UsageError(
                f'{loop}_dataloader.dataset.ann_file: {path} does not exist; '
                'get COCO 2017 with `mim download mmdet --dataset coco2017`, '
                'demo/ with the repository; name another folder in the config '
                '(docs/coco.md) or by `lors-det init NAME DIR --root FOLDER`'
            )


def _check_evaluator(cfg: Mapping[str, Any], loop: str) -> None:
    """Check that the metric reads the annotations of the loader's images."""
    found = cfg.get(f'{loop}_evaluator') or {}
    loaded = [*filter(None, map(_annotations, datasets_of(cfg, loop)))]
    for metric in found if isinstance(found, list) else [found]:
        path = _annotations(metric)
        if not path or path in loaded:
            continue  # the data set checks it
        name = f'CONFIG: {loop}_evaluator.ann_file={str(path)!r}'
        used = set().union(*(_read_images(each, str(each)) for each in loaded))
        missing = used - _read_images(path, name)
        if missing:
            raise UsageError(
                f'{name}: {len(missing)} images of the loader are not in it, '
                f'like {min(missing)!r}'
            )


def _read_images(path: Path, name: str) -> set[tuple[str, str]]:
    """Return id and name of the images of an annotation file."""
    content = read_annotations(str(path), name)
    check_annotations(content).raise_refused(name)
    return {(each['id'], each['file_name']) for each in content['images']}


def _annotations(config: Mapping[str, Any]) -> Path | None:
    """Return the annotation file of a config, if it is a local one."""
    file = config.get('ann_file')
    if not file or '://' in file or config.get('backend_args'):
        return None
    return Path(config.get('data_root') or '', file)


def datasets_of(
    cfg: Mapping[str, Any], loop: str
) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of a loop's data sets, without what wraps them.

    Args:
        cfg: The whole config.
        loop: ``train``, ``val`` or ``test``.
    """
    for path, node in walk_config(cfg.get(f'{loop}_dataloader')):
        is_one = path[-1:] == ('dataset',) or path[-2:-1] == ('datasets',)
        if is_one and isinstance(node, Mapping):
            if not {'dataset', 'datasets'} & {*node}:
                yield node
