# SPDX-License-Identifier: Apache-2.0
"""Settings of a run, and checks of what no component checks itself.

Imports no torch: what can be refused without it is refused at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from lors_det.cli.boundary import OneLineErrors, suggest, walk_config
from lors_det.datasets.annotations import check_annotations, read_annotations
from lors_det.errors import UsageError, one_line
from lors_det.files import load_config

if TYPE_CHECKING:
    from mmengine.config import Config

COCO_HELP = (
    'get COCO 2017 with `mim download mmdet --dataset coco2017` or from '
    'https://cocodataset.org, or name another folder in the config '
    '(docs/coco.md)'
)
DEMO_HELP = (
    'demo/ is in the repository, not in the package: run in a clone of it, or '
    'copy the config with `lors-det init NAME DIR --root CLONE`'
)
#: A variable that each launcher sets for the processes that it starts.
LAUNCHED = {
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_RANK',
}
NUMBER = (int, float)
#: The settings of schedulers that are no numbers.
TEXTS = 'type anneal_strategy monitor param_name rule threshold_rule'.split()
#: What is read from dicts that are not built by ``type``: from the config
#: itself, '', what mmengine's runner takes, and so on.
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
    'dataloader': 'batch_sampler batch_size collate_fn dataset '
    'disable_subprocess_warning drop_last generator in_order '
    'multiprocessing_context num_batch_per_epoch num_workers '
    'persistent_workers pin_memory pin_memory_device prefetch_factor sampler '
    'shuffle timeout worker_init_fn',
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
) -> Config:
    """Read the config file and what the command line changes of it.

    Prints the first line of a run. What ``custom_imports`` name is left to
    `build_runner`: it takes seconds to import.

    Args:
        args: Parsed arguments.
        errors: Learns what the config is.
        loops: Whose data must be there: ``train``, ``val``, ``test``.

    Returns:
        The config of the run.

    Raises:
        UsageError: If the config, an option or a file cannot be used.
    """
    if os.environ.get('RANK', '0') == '0':
        print('config', args.config, flush=True)
    cfg = errors.cfg = load_config(args.config, imports=False)
    if args.cfg_options:
        check_options(cfg, args.cfg_options)
        try:
            cfg.merge_from_dict(args.cfg_options)
        except Exception as error:  # of many kinds
            raise UsageError(f'--cfg-options: {one_line(error)}') from error
    if not isinstance(cfg.get('model'), Mapping):
        raise UsageError(
            f'CONFIG: {args.config}: model={cfg.get("model")!r}: expected a '
            'dict'
        )
    variable = LAUNCHED.get(args.launcher)
    if variable and variable not in os.environ:
        raise UsageError(
            f'--launcher {args.launcher}: {variable} is not set; expected to '
            'be started by that launcher, as tools/dist_*.sh and '
            'tools/slurm_*.sh do'
        )
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get('work_dir'):
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))
    cfg.launcher = args.launcher
    if 'compile' in cfg and cfg.model.get('type') == 'AdaMixer':
        # mmengine would compile the training step, and matching with it.
        cfg.model.compile = cfg.pop('compile')
    check_clipping(cfg)
    for loop in loops:
        check_dataset(cfg, loop)
        if loop != 'train':
            check_evaluator(cfg, loop)
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
        UsageError: If nothing reads a key, or a value is of another kind than
            the config's.
    """
    for option, value in options.items():
        what = f'{source} {option}={value!r}'
        node: Any = dict(cfg)
        part: Any = {}
        parent = ''
        for name in option.split('.'):
            read = _keys_read(parent)
            if isinstance(node, list):
                node = {str(i): entry for i, entry in enumerate(node)}
            if not isinstance(node, Mapping) or name == '_delete_':
                break
            if read and name not in read and name not in node:
                near = _elsewhere(cfg, name) or suggest(name, (*read, *node))
                raise UsageError(f'{what}: nothing reads {name!r}{near}')
            if not parent and name not in read:
                raise UsageError(f'{what}: {_where_used(cfg, name)}')
            node, part, parent = node.get(name, {}), node, name
        else:
            kind = _kind_expected(option, value, part)
            if kind:
                raise UsageError(f'{what}: expected {kind}')


def _elsewhere(cfg: Mapping[str, Any], name: str) -> str:
    """Say where else in the config a key of this name is."""
    paths = (path for path, _ in walk_config(dict(cfg)))
    found = ['.'.join(path) for path in paths if path[-1:] == (name,)]
    return f'; there is {", ".join(found[:3])}' if found else ''


def _where_used(cfg: Mapping[str, Any], variable: str) -> str:
    """Say which settings a variable of the config file was used for."""
    value = cfg[variable]
    settings = {key: cfg[key] for key in _keys_read('') if key in cfg}
    found = [
        '.'.join(path)
        for path, node in walk_config(settings)
        if node == value
        and (path[-1:] == (variable,) or value not in (None, True, False))
    ]
    used = f'the config file has used {variable!r} already'
    return f'{used}; change {", ".join(found[:3])}' if found else used


def _kind_expected(option: str, value: Any, part: Mapping[str, Any]) -> str:
    """Return what an option should be, where no class checks that it is."""
    name = option.split('.')[-1]
    before = part.get(name)
    if option == 'resume':
        return '' if isinstance(value, bool) else 'True or False'
    if before and _each_is(before, Mapping) and 'type' not in part:
        return '' if _each_is(value, (Mapping, bool, NoneType)) else 'a dict'
    if option.startswith('param_scheduler.') and name not in TEXTS:
        if before is None or _each_is(before, NUMBER):
            return '' if _each_is(value, (*NUMBER, NoneType)) else 'numbers'
    return ''


def _each_is(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether a value, or each one of a list, is of a kind."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(each, kinds) for each in values)


def _keys_read(parent: str) -> list[str]:
    """Return what is read from a dict of this name; nothing if unknown."""
    kind = 'dataloader' if parent.endswith('_dataloader') else parent
    return READ.get(kind, '').split()


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
    for dataset in datasets_of(cfg, loop):
        files = {'ann_file': dataset.get('ann_file')}
        for name, prefix in (dataset.get('data_prefix') or {}).items():
            files[f'data_prefix.{name}'] = prefix
        for name, file in files.items():
            path = _local_path(dataset, file)
            if path and not path.exists():
                in_demo = path.parts[0] == 'demo'
                raise UsageError(
                    f'{loop}_dataloader.dataset.{name}: {path} does not '
                    f'exist; {DEMO_HELP if in_demo else COCO_HELP}'
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
    datasets = datasets_of(cfg, loop)
    loaded = [_local_path(each, each.get('ann_file')) for each in datasets]
    for metric in found if isinstance(found, list) else [found]:
        path = _local_path(metric, metric.get('ann_file'))
        if not path or path in loaded:
            continue  # the data set checks it
        name = f'CONFIG: {loop}_evaluator.ann_file={str(path)!r}'
        known = read_annotations(str(path), name)
        check_annotations(known).raise_refused(name)
        for other in filter(None, loaded):
            used = read_annotations(str(other), str(other))
            missing = _image_names(used) - _image_names(known)
            if missing:
                raise UsageError(
                    f'{name}: {len(missing)} images of {other} are not in it, '
                    f'like {min(missing)!r}; expected the annotations of '
                    f'{loop}_dataloader'
                )


def _image_names(content: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {
        (str(each.get('id')), str(each.get('file_name')))
        for each in content['images']
    }


def _local_path(config: Mapping[str, Any], file: str | None) -> Path | None:
    """Return where a file is; None for none, or one that a backend fetches."""
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
