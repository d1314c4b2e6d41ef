# SPDX-License-Identifier: Apache-2.0
"""Every mistake in a command or its config ends in one line."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import torch
from helpers.command_lines import CONFIG, ROOT, run_here, small_run
from mmengine.config import Config
from mmengine.runner import Runner

from lors_det.cli.arguments import parse_value, train_parser
from lors_det.cli.boundary import OneLineErrors
from lors_det.errors import UsageError

ANNOTATIONS = 'demo/coco_tiny/annotations'


def error_of(*command: str | Path) -> str:
    with pytest.raises(SystemExit) as caught:
        run_here(*command)
    line = str(caught.value)
    assert '\n' not in line
    return line


# What is changed on the command line: how the line begins.
OPTIONS = {
    # the command line itself
    'KEY': '--cfg-options KEY: expected KEY=VALUE',
    'a=[8,16': '--cfg-options a=[8,16: Imbalanced brackets exist in [8,16',
    'model.backbone.init_cfg.type=Pretrained': 'CONFIG: init_cfg=',
    'norm_cfg.type=Foo': "--cfg-options norm_cfg.type='Foo': nothing reads "
    "'norm_cfg'; there is model.backbone.norm_cfg",
    'train_dataloder.batch_size=2': '--cfg-options train_dataloder.batch_size='
    "2: nothing reads 'train_dataloder'; did you mean 'train_dataloader'?",
    'modle.num_queries=2': '--cfg-options modle.num_queries=2: nothing reads '
    "'modle'; did you mean 'model'?",
    'train_dataloader.batchsize=2': '--cfg-options train_dataloader.batchsize='
    "2: nothing reads 'batchsize'; did you mean 'batch_size'?",
    'train_dataloader.dataset.filter_cfg.minsize=3': '--cfg-options '
    'train_dataloader.dataset.filter_cfg.minsize=3: nothing reads '
    "'minsize'; did you mean 'min_size'?",
    'optim_wrapper.paramwise_cfg.bias_lr=1': '--cfg-options optim_wrapper.'
    "paramwise_cfg.bias_lr=1: nothing reads 'bias_lr'; did you mean",
    'env_cfg.dist_cfg=5': '--cfg-options env_cfg.dist_cfg=5: expected a dict',
    'model=5': '--cfg-options model=5: expected a dict',
    'randomness.sed=1': "--cfg-options randomness.sed=1: nothing reads 'sed'; "
    "did you mean 'seed'?",
    'param_scheduler.1.milestones=abc': 'CONFIG: param_scheduler.1.'
    "milestones='abc': expected numbers",
    'param_scheduler.1.gamma=abc': 'CONFIG: param_scheduler.1.'
    "gamma='abc': expected numbers",
    'resume=maybe': "CONFIG: resume='maybe': expected True or False",
    # variables of the file
    'data_root=/x': "--cfg-options data_root='/x': nothing reads 'data_root'; "
    'there is train_dataloader.dataset.data_root, ',
    'max_iters=5': "--cfg-options max_iters=5: nothing reads 'max_iters'; "
    'there is train_cfg.max_iters, ',
    'vis_backends.0.type=Foo': "--cfg-options vis_backends.0.type='Foo': "
    "nothing reads 'vis_backends'; there is visualizer.vis_backends",
    # files
    'train_dataloader.dataset.data_root=/a/with  space/x': 'train_dataloader.'
    'dataset.ann_file: /a/with  space/x/annotations/instances_train.json '
    'does not exist; get COCO 2017 with ',
    'load_from=none.pth': 'load_from: none.pth does not exist',
    'load_from=lors_det': 'load_from: lors_det is a folder, expected a file',
    'load_from=http://127.0.0.1:9/x.pth': 'CONFIG: load_from='
    "'http://127.0.0.1:9/x.pth': <urlopen error [Errno 111] Connection",
    'val_evaluator.ann_file=none.json': 'CONFIG: val_evaluator.ann_file='
    "'none.json' cannot be read: No such file",
    f'val_evaluator.ann_file={ANNOTATIONS}/instances_val.json': 'CONFIG: '
    f"val_evaluator.ann_file='{ANNOTATIONS}/instances_val.json': 19 images of "
    'the loader are not in it, like ',
    # optimiser, schedule, loops
    'optim_wrapper.type=Foo': "CONFIG: optim_wrapper.type='Foo': no "
    "optim_wrapper of this name; expected one of ['AmpOptimWrapper', ",
    'optim_wrapper.constructor=Foo': "CONFIG: optim_wrapper.constructor='Foo':"
    ' no optimizer constructor of this name; expected one of [',
    'optim_wrapper.optimizer.type=AdamX': 'CONFIG: optim_wrapper.optimizer.'
    "type='AdamX': no optimizer of this name; did you mean 'Adam'?",
    'optim_wrapper.clip_grad.max_norm=-1': 'CONFIG: optim_wrapper.clip_grad.'
    'max_norm=-1: expected a number above 0',
    'optim_wrapper.optimizer.lr=-1': 'CONFIG: optim_wrapper.optimizer.lr=-1: ',
    'param_scheduler=5': 'CONFIG: param_scheduler=5: `param_scheduler` should '
    'be a ',
    'param_scheduler.0.start_factor=5': 'CONFIG: param_scheduler.0={',
    'train_cfg.max_iters=1.5': 'CONFIG: train_cfg.max_iters=1.5: ',
    'train_cfg.maxiters=4': 'CONFIG: train_cfg.maxiters=4: unknown key; did '
    "you mean 'max_iters'?",
    # data
    'train_dataloader.batch_size=0': 'CONFIG: train_dataloader.batch_size=0: ',
    'train_dataloader.dataset.pipeline.2.type=Resizer': 'CONFIG: '
    "train_dataloader.dataset.pipeline.2.type='Resizer': no transform of this "
    "name; did you mean 'Resize'?",
    'train_dataloader.dataset.pipeline.2.backend=foo': 'CONFIG: '
    "train_dataloader.dataset.pipeline.2.backend='foo': ",
    # hooks, metric, the rest
    'default_hooks.logger.interval=0': 'CONFIG: default_hooks.logger.interval='
    '0: interval must be greater than 0',
    'default_hooks.non_finite.action=foo': 'CONFIG: default_hooks.non_finite.'
    "action='foo': expected one of",
    'default_hooks.timer.type=mmpretrain.Hook': 'CONFIG: default_hooks.timer.'
    "type='mmpretrain.Hook': the package 'mmpretrain' is not installed",
    'val_evaluator.metric=foo': "CONFIG: val_evaluator.metric='foo': metric ",
    'visualizer.foo=1': 'CONFIG: visualizer.foo=1: unknown key',
    'randomness.seed=a': "CONFIG: randomness.seed='a': ",
    'log_level=FOO': "CONFIG: log_level='FOO': ",
    'env_cfg.mp_cfg.mp_start_method=a': 'CONFIG: env_cfg.mp_cfg.'
    "mp_start_method='a': cannot find context for 'a'",
    # model
    'model.type=AdaMixr': "CONFIG: model.type='AdaMixr': no model of this "
    "name; did you mean 'AdaMixer'?",
    'model.num_query=3': 'CONFIG: model.num_query=3: unknown key; did you '
    "mean 'num_queries'?",
    'model.backbone.frozen_stages=7': 'CONFIG: model.backbone={',
    'model.data_preprocessor.mean=[1,2]': 'CONFIG: model.data_preprocessor.'
    'mean=[1, 2]: `mean` should have 1 or 3 values',
    'model.neck.in_channels=[8,16,32,65]': 'CONFIG: model.neck.in_channels='
    '[8, 16, 32, 65]: the backbone gives [8, 16, 32, 64]',
    'model.decoder.num_classes=3': 'CONFIG: model.decoder.num_classes=3: ',
    'model.decoder.strides=[8,16,32,64]': 'CONFIG: model.decoder.strides[0]=8:'
    ' level 0 of the neck is ',
    'model.decoder.stacks.mixing_kernels.rank=1000': 'CONFIG: model.decoder.'
    'stacks.mixing_kernels.rank=1000: expected values from 0 to 4',
}  # fmt: skip


@pytest.mark.parametrize('option', OPTIONS)
def test_a_wrong_option(option: str, tmp_path: Path) -> None:
    command = small_run('train', '--work-dir', tmp_path, options=(option,))
    line = error_of(*command)
    assert line.startswith(f'error: {OPTIONS[option]}')
    if '(traceback: ' in line:
        log = (tmp_path / 'error.log').read_text()
        assert log.startswith('Traceback (most recent call last):')


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('val_dataloader.dataset.pipeline.1.scale=-1', 'CONFIG: val_dataloader'
         '.dataset.pipeline.1={'),
        ('val_evaluator.iou_thrs=a', 'CONFIG: val_evaluator={'),
    ],
)  # fmt: skip
def test_a_mistake_that_shows_in_validation(
    option: str, message: str, tmp_path: Path
) -> None:
    options = (option, 'train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    command = small_run('train', '--work-dir', tmp_path, options=options)
    assert error_of(*command).startswith(f'error: {message}')


# Contents of a config file by its name: what the line says.
CONFIGS = {
    'empty.py': ('', 'is empty'),
    'no_model.py': ('a = 1', 'model=None: expected a dict'),
    'ending.txt': ('model = dict()', 'Only py/yml/yaml/json type'),
    'broken.json': ('{', 'Expecting property name enclosed in double quotes'),
    'broken.yml': ('a: [', 'while parsing a flow node'),
    'broken.py': ('model = dict(', "'(' was never closed"),
    'name.py': ('model = foo', "name 'foo' is not defined"),
    'circle.py': (
        "_base_ = 'circle.py'",
        'its _base_ files lead back to themselves',
    ),
    'twice.py': ("_base_ = ['empty.py', 'one.py']", 'Duplicate key'),
    'into_none.py': (
        "_base_ = 'one.py'\na = dict(b=1)",
        "a={'b': 1} in child",
    ),
    'no_base.py': ("_base_ = 'gone.py'", 'gone.py: No such file'),
    'folder.py/x': ('', 'is a folder, expected a file'),
}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_wrong_config_file(name: str, tmp_path: Path) -> None:
    content, reason = CONFIGS[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    (tmp_path / 'one.py').write_text('a = None')
    if name == 'twice.py':
        (tmp_path / 'empty.py').write_text('a = 1')
    path = tmp_path / name.split('/')[0]
    line = error_of('tools/train.py', path, '--work-dir', tmp_path / 'run')
    assert line.startswith((f'error: CONFIG: {path}', 'error: CONFIG: model='))
    assert reason in line


@pytest.mark.parametrize(
    ('command', 'message'),
    [
        ('train.py none.py', 'CONFIG: none.py does not exist'),
        ('test.py {config} none.pth', 'CHECKPOINT: none.pth does not exist'),
        ('test.py {config} lors_det', 'CHECKPOINT: lors_det is a folder'),
        ('test.py {config} {empty}', 'CHECKPOINT: {empty} is empty'),
        ('train.py {config} --resume no.pth', '--resume: no.pth does not'),
        ('train.py {config} --resume {text}', '{text} is no checkpoint, or '),
        ('test.py {config} {dangling}', 'CHECKPOINT: {dangling} does not'),
        ('train.py {config} --resume {loop}', '--resume: {loop} does not'),
        ('train.py {config} --resume {other}', '{other}: none of its 0 '
         'weights fits the model'),
        ('test.py {config} {other}', '{other}: none of its 0 weights fits'),
        ('train.py {config} --launcher pytorch', "CONFIG: launcher='pytorch': "
         'expected torchrun to start it'),
        ('train.py {config} --work-dir {empty}', "CONFIG: work_dir='{empty}': "
         '{empty}: File exists'),
        # A folder that even root cannot write to.
        ('train.py {config} --work-dir /proc/no', "CONFIG: work_dir='/proc/no'"
         ': /proc/no: '),
        ('train.py configs/lors/lors-adamixer_r50_1x_coco.py',
         'train_dataloader.dataset.ann_file: data/coco/annotations/instances_'
         'train2017.json does not exist; get COCO 2017 with '),
    ],
)  # fmt: skip
def test_a_wrong_command(command: str, message: str, tmp_path: Path) -> None:
    names = {
        name: str(tmp_path / f'{name}.pth')
        for name in ('empty', 'text', 'other', 'dangling', 'loop')
    }
    Path(names['empty']).touch()
    Path(names['text']).write_text('text')
    torch.save({'state_dict': {}}, names['other'])
    Path(names['dangling']).symlink_to(tmp_path / 'gone.pth')
    Path(names['loop']).symlink_to(names['loop'])
    tool, *words = command.format(**names, config=CONFIG).split()
    if '--work-dir' not in words:
        words += ['--work-dir', str(tmp_path / 'run')]
    if CONFIG in words:
        words += small_run(tool)[2:]
    line = error_of(f'tools/{tool}', *words)
    assert line.startswith(f'error: {message.format(**names)}')


def test_a_damaged_evaluator_file(tmp_path: Path) -> None:
    path = tmp_path / 'damaged.json'
    text = (ROOT / ANNOTATIONS / 'instances_train.json').read_text()
    content = json.loads(text)
    content['annotations'] += content['annotations'][:1]
    for damaged, message in (
        (json.dumps(content), 'annotation id used twice'),
        (text[:-9], 'is no JSON, or cut off'),
    ):
        path.write_text(damaged)
        option = f'val_evaluator.ann_file={path}'
        assert message in error_of(*small_run('train', options=(option,)))


def test_a_mistake_is_shown_before_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = small_run('train', '--work-dir', tmp_path)
    error_of(*command, 'model.decoder.num_heads=5')
    out, err = capfd.readouterr()
    assert 'System environment' not in out + err
    assert len((out + err).splitlines()) < 5
    (log,) = tmp_path.glob('*/*.log')
    assert 'System environment' in log.read_text()
    error_of(*command[:2], '--traceback', *command[2:], 'model.num_queries=0')
    assert 'Traceback (most recent call last)' in capfd.readouterr().err


def test_a_good_run_is_mmengines_own(tmp_path: Path) -> None:
    """The same weights, bit for bit, and the same AP."""
    options = ('train_cfg.max_iters=2', 'train_cfg.val_interval=2')
    command = small_run('train', '--work-dir', tmp_path / 'a', options=options)
    run_here(*command)
    args = train_parser().parse_args([str(each) for each in command[1:]])
    cfg = Config.fromfile(ROOT / CONFIG)
    cfg.merge_from_dict(args.cfg_options)
    cfg.work_dir, cfg.experiment_name = str(tmp_path / 'b'), 'plain'
    cfg.visualizer.name = 'plain'
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        Runner.from_cfg(cfg).train()
    states, scores = [], []
    for folder in ('a', 'b'):
        path = tmp_path / folder
        states.append(torch.load(path / 'iter_2.pth', weights_only=False))
        (log,) = path.glob('*/*.log')
        scores.append(re.findall(r'bbox_mAP\w*: \S+', log.read_text()))
    ours, theirs = (state['state_dict'] for state in states)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert scores[0] == scores[1] != []


def fail(error: Exception, is_read: bool) -> None:
    with OneLineErrors({'a': 1} if is_read else {}) as errors:
        errors.first_batch_done = is_read
        raise error


@pytest.mark.parametrize('is_read', [False, True])
def test_before_a_config_is_read_and_later(is_read: bool) -> None:
    """Only what a user can mend is one line."""
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError('of step 7'), is_read)
    with pytest.raises(SystemExit, match=r'^error: no box$'):
        fail(UsageError('no box'), is_read)


def test_a_full_disk(tmp_path: Path) -> None:
    """The line says how to resume, also where the log does not fit."""
    for ending in ('no checkpoint was written', 'the same command with'):
        line = f'error: {tmp_path}: No space left on device: make room; '
        with (
            pytest.raises(SystemExit, match=re.escape(line + ending)),
            OneLineErrors({'work_dir': str(tmp_path)}),
        ):
            raise OSError(errno.ENOSPC, 'No space left on device')
        (tmp_path / 'iter_1.pth').touch()


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('3', 3), ('-1e-3', -1e-3), ('1,2', [1, 2]), ('[1]', [1]), ('[]', []),
        ('(1, [2,a b])', (1, [2, 'a b'])), ('[(1,2),(3,4)]', [(1, 2), (3, 4)]),
        ('true', True), ('None', None), ('', ''), ('/a b/c  d', '/a b/c  d'),
        ('"[1, 2]"', [1, 2]), ('/a (b/c', '/a (b/c'),
    ],
)  # fmt: skip
def test_values_of_options(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)
