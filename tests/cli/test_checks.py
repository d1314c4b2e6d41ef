# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
from helpers.command_lines import CONFIG, run
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from lors_det.cli.arguments import train_parser
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.checks import READ, check_dataset, configure
from lors_det.errors import UsageError


def config(root: str, **changes: object) -> dict:
    inner = {
        'data_root': root,
        'ann_file': 'train.json',
        'data_prefix': {'img': 'images/'},
        **changes,
    }
    both = {'type': 'ConcatDataset', 'datasets': [inner, inner]}
    outer = {'type': 'RepeatDataset', 'times': 2, 'dataset': both}
    return {'train_dataloader': {'dataset': outer}}


def test_dataset(tmp_path: Path) -> None:
    cfg = config(str(tmp_path))
    found = f'train_dataloader.dataset.ann_file: {tmp_path}/train.json does '
    with pytest.raises(UsageError, match=f'^{found}not exist; get COCO 2017 '):
        check_dataset(cfg, 'train')
    with pytest.raises(UsageError, match='`lors-det init NAME DIR --root '):
        check_dataset(config('demo/none'), 'train')
    (tmp_path / 'train.json').touch()
    check_dataset(cfg, 'train')
    check_dataset(cfg, 'val')  # the config has none
    # Remote files are left to their backend.
    check_dataset(config('a', backend_args={'backend': 'x'}), 'train')
    remote = {'ann_file': 'http://a/b.json', 'data_prefix': {}}
    check_dataset(config('', **remote), 'train')


def test_compile_is_given_to_the_model(tmp_path: Path) -> None:
    """Not to mmengine, which would compile the matching too."""

    def settings(*arguments: str) -> Config:
        args = train_parser().parse_args([CONFIG, *arguments])
        args.work_dir = str(tmp_path)
        return configure(args, OneLineErrors(), ())

    cfg = settings('--cfg-options', 'compile.mode=max-autotune')
    assert cfg.model.compile == {'mode': 'max-autotune'}
    assert 'compile' not in cfg
    cfg = settings()
    assert 'compile' not in cfg.model


def test_all_keys_of_runner_and_loader_are_known() -> None:
    for kind, taker in (('', Runner), ('val_dataloader', DataLoader)):
        taken = inspect.signature(taker.__init__).parameters
        assert {*taken} - {'self'} <= {*READ[kind].split()}


WITHOUT_TORCH = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    print('torch' in sys.modules)
"""


@pytest.mark.parametrize(
    'command',
    [
        f'tools/train.py {CONFIG} --cfg-options modle.num_queries=2',
        'tools/train.py configs/lors/lors-adamixer_r50_1x_coco.py',
        f'tools/test.py {CONFIG} none.pth',
    ],
)
def test_nobody_waits_for_torch_to_learn_of_a_mistake(command: str) -> None:
    code = WITHOUT_TORCH.replace('sys.argv[0]', repr(command.split()[0]))
    code = f'import sys; sys.argv = {command.split()!r}{code}'
    output = run(sys.executable, '-c', code, expect=1)
    assert 'False' in output.splitlines()
