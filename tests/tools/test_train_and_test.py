# SPDX-License-Identifier: Apache-2.0
"""The command lines, end to end, on a few of the embedded images."""

from __future__ import annotations

import os
import pickle
import re
import signal
import time
from pathlib import Path

import pytest
from helpers.command_lines import (
    CONFIG,
    SMALL,
    run_here,
    run_tool,
    small_run,
    start,
    start_tool,
)


def run_train(*arguments: str | Path) -> str:
    return run_tool(*small_run('train', *arguments))


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of four iterations, and what it printed."""
    work_dir = tmp_path_factory.mktemp('run')
    return work_dir, run_train('--work-dir', work_dir)


@pytest.mark.slow
def test_training(trained: tuple[Path, str]) -> None:
    work_dir, output = trained
    lines = [line for line in output.splitlines() if 'warn' not in line]
    assert lines[0].startswith('config ')
    # The console shows little and the log file all.
    step = r'Iter\(train\) \[4/4\].*eta: .* loss: [\d.]+'
    assert re.search(f'{step}$', output, re.M)
    assert len(lines) < 30
    log = next(work_dir.glob('*/*.log')).read_text()
    assert re.search(f'{step}.*s2.loss_iou', log)
    assert 'System environment' in log
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in log
    assert 'memorised/bbox_mAP:' in output
    assert {p.name for p in work_dir.glob('*.pth')} == {
        'iter_2.pth',
        'iter_4.pth',
    }


def wait_for(path: Path) -> None:
    """Until a file is there."""
    end = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_resuming(trained: tuple[Path, str], tmp_path: Path) -> None:
    first = trained[0] / 'iter_2.pth'
    output = run_train('--work-dir', tmp_path, '--resume', first)
    assert 'resumed epoch: 0, iter: 2' in output
    assert 'Iter(train) [3/4]' in output
    assert 'Iter(train) [1/4]' not in output
    # Without a name, the latest of the work directory; Ctrl-C ends it.
    command = small_run(
        'train', '--work-dir', tmp_path, '--resume',
        options=('train_cfg.max_iters=1000', 'train_cfg.val_interval=1000'),
    )  # fmt: skip
    process = start_tool(command, tmp_path / 'output')
    wait_for(tmp_path / 'iter_6.pth')
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    output = (tmp_path / 'output').read_text()
    assert 'resumed epoch: 0, iter: 4' in output
    assert 'Traceback' not in output
    assert output.endswith(
        'interrupted; the same command with --resume continues from the last '
        f'checkpoint in {tmp_path}\n'
    )


@pytest.mark.slow
def test_testing(trained: tuple[Path, str], tmp_path: Path) -> None:
    out, show = tmp_path / 'detections.pkl', tmp_path / 'pictures'
    arguments = (
        trained[0] / 'iter_4.pth', '--work-dir', tmp_path / 'work',
        '--out', out, '--show-dir', show, '--dtype', 'bfloat16',
    )  # fmt: skip
    # Nothing is written over without being asked for.
    message = f'{trained[0]} holds 2 checkpoints of an earlier run (iter_4.pt'
    with pytest.raises(SystemExit, match=re.escape(message)):
        run_here(*small_run('train', '--work-dir', trained[0]))
    out.write_bytes(b'earlier')
    message = f'--out {out}: is there already; name another, or add --overwr'
    with pytest.raises(SystemExit, match=re.escape(message)):
        run_here('tools/test.py', CONFIG, *arguments)
    output = run_tool(*small_run('test', *arguments, '--overwrite'))
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95' in output
    detections = pickle.loads(out.read_bytes())
    assert len(detections) == len(list(show.glob('*.jpg'))) == 19
    assert detections[0]['pred_instances']['bboxes'].shape == (8, 4)


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Train by the shell launcher, on gloo, with AMP, and lose a process."""
    options = (
        'train_cfg.max_iters=20',
        'train_cfg.val_interval=20',
        'find_unused_parameters=True',
    )
    with start(
        'tools/dist_train.sh', CONFIG, '2', '--work-dir', tmp_path,
        '--amp', 'bfloat16', '--cfg-options', *SMALL, *options, PORT='29511',
    ) as launcher:  # fmt: skip
        wait_for(tmp_path / 'iter_2.pth')
        children = f'/proc/{launcher.pid}/task/{launcher.pid}/children'
        worker = Path(children).read_text().split()[-1]
        os.kill(int(worker), signal.SIGKILL)
        output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output[-4000:]
    log = max(tmp_path.glob('*/*.log')).read_text()
    assert 'Distributed launcher: pytorch' in log
    assert 'GPU number: 2' in log
    # Started again, by itself, from the newest checkpoint.
    assert output.count('Iter(train) [ 1/20]') == 1
    assert re.search(r'resumed epoch: 0, iter: [1-9]', output)
    assert 'Iter(train) [20/20]' in output
    assert 'failed to connect' not in output  # to a process that died
    assert re.search(r'bbox_mAP: .*bbox_mAP_l: [\d.-]+', output)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('tool', 'option', 'message'),
    [
        ('test', 'model.decoder.stacks.mixing_kernels.rank=3',
         'decoder.stacks.mixing_kernels: the checkpoint '
         "(decoder.mixing.channel.*) holds mode 'lors', 3 layers, ranks "
         "{0: '1 x 2', 1: '2 x 2', 2: '3 x 2'}; the model was built with"),
        ('train', 'optim_wrapper.optimizer.type=SGD',
         'is of a run with another optimiser'),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_run(
    tool: str, option: str, message: str, trained: tuple[Path, str]
) -> None:
    resume = ['--resume'] if tool == 'train' else []
    command = small_run(
        tool, *resume, trained[0] / 'iter_4.pth',
        '--work-dir', trained[0] / 'other', options=(option,),
    )  # fmt: skip
    with pytest.raises(SystemExit, match=re.escape(message)):
        run_here(*command)


@pytest.mark.slow
def test_the_error_is_the_last_line_of_a_launcher(tmp_path: Path) -> None:
    missing = tmp_path / 'none.pth'
    command = [
        'lors_det/cli/torchrun.py', '--master-port=29513', 'tools/test.py',
        CONFIG, missing, '--launcher', 'pytorch',
    ]  # fmt: skip
    process = start_tool(command, tmp_path / 'output')
    process.join(240)
    assert process.exitcode == 1
    output = (tmp_path / 'output').read_text()
    line = f'error: process 0: CHECKPOINT: {missing} does not exist'
    assert output.splitlines()[-1].startswith(line)
    assert 'Traceback' not in output
