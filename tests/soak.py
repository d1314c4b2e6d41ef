# SPDX-License-Identifier: Apache-2.0
"""Break training runs, and compare them with runs that nothing broke.

    python tests/soak.py [--short]

prints the table of docs/reliability.md. The runs are forked from this process,
which has imported everything: they start in a fraction of a second.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

import torch  # isort: skip
import torchvision  # noqa: F401  # by mmengine, when a run begins
from mmengine.runner import runner as mmengine_runner
from yapf.yapflib import yapf_api

from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.checks import configure
from lors_det.cli.train import train
from lors_det.files import find_damage
from lors_det.hooks.checkpoint import latest_checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'tests/helpers/soak_config.py'
# Changes of the config; with 19 images, an epoch has 10 steps of one process.
LOOPS: dict[str, dict[str, Any]] = {
    'iterations': {},
    'epochs': {
        'train_cfg': {
            '_delete_': True, 'type': 'EpochBasedTrainLoop', 'max_epochs': 4
        },
        'log_processor.by_epoch': True,
        'train_dataloader.num_workers': 2,
        'train_dataloader.persistent_workers': True,
        'train_dataloader.sampler.type': 'DefaultSampler',
        'train_dataloader.batch_sampler': {
            '_delete_': True, 'type': 'AspectRatioBatchSampler'
        },
    },
}  # fmt: skip
# What becomes of the content of a file; ``at`` is among its tensors.
HARMS = {
    'cut off': lambda content, at: content[:at],
    'a flipped bit': lambda content, at: (
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    ),
    'zeros': lambda content, at: bytes(len(content)),
}
CHANCE = random.Random(0)
FORK = multiprocessing.get_context('fork')


class Run:
    """A training, in processes that can be killed.

    Args:
        loop: A key of `LOOPS`.
        num_processes: How many train it.
    """

    def __init__(self, loop: str, num_processes: int = 1) -> None:
        self.loop = loop
        self.num_processes = num_processes
        self.work_dir = Path(tempfile.mkdtemp())  # main sets where

    def start(self, max_bytes: int = -1) -> None:
        """Start or resume it; no file may have more than ``max_bytes``."""
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        self.processes = [
            FORK.Process(target=self.train, args=(rank, port, max_bytes))
            for rank in range(self.num_processes)
        ]
        for process in self.processes:
            process.start()

    def train(self, rank: int, port: int, max_bytes: int) -> None:
        """Call what tools/train.py calls."""
        output = os.open(self.work_dir / 'output', os.O_CREAT | os.O_RDWR)
        os.lseek(output, 0, os.SEEK_END)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if self.num_processes > 1:
            os.environ |= {
                'RANK': str(rank), 'LOCAL_RANK': str(rank),
                'WORLD_SIZE': str(self.num_processes),
                'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
            }  # fmt: skip
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
        launcher = 'pytorch' if self.num_processes > 1 else 'none'
        args = argparse.Namespace(
            config=str(CONFIG), work_dir=str(self.work_dir), trust=False,
            cfg_options=LOOPS[self.loop], overwrite=False, resume='auto',
            launcher=launcher, amp=None, auto_scale_lr=False,
        )  # fmt: skip
        errors = OneLineErrors()
        train(configure(args, errors, ('train', 'val')), args, errors)

    def wait(self) -> bool:
        """Wait for its end; return whether it was a good one."""
        for process in self.processes:
            process.join()
        return all(process.exitcode == 0 for process in self.processes)

    def kill(self, after: int, delay: float = 0) -> bool:
        """Kill it, ``delay`` seconds after ``after`` further iterations.

        Returns:
            Whether it was still running.
        """
        last = len(self.losses()) + after
        while len(self.losses()) < last and self.processes[0].is_alive():
            time.sleep(0.02)
        time.sleep(delay)
        for process in self.processes:
            process.kill()
        self.wait()
        return any(p.exitcode == -signal.SIGKILL for p in self.processes)

    def losses(self) -> list[tuple[int, str]]:
        """Return iteration and losses of all steps, also those done twice."""
        done = []
        for log in sorted(self.work_dir.glob('*/vis_data/scalars.json')):
            for line in log.read_text().splitlines():
                if line.endswith('}'):  # not cut off
                    entry = json.loads(line)
                    losses = {k: entry[k] for k in entry if 'loss' in k}
                    done.append((entry['step'], repr(losses)))
        return done

    def newest(self) -> Path:
        """Return the checkpoint that it would be resumed from."""
        return Path(str(latest_checkpoint(str(self.work_dir))))

    def state(self) -> dict[str, Any]:
        """Return weights, averages, optimiser and schedule at its end."""
        found = torch.load(self.newest(), weights_only=False)
        return {k: found[k] for k in found.keys() - {'meta', 'message_hub'}}


@cache
def whole_run(loop: str, num_processes: int) -> Run:
    """Return a finished run that nothing broke."""
    run = Run(loop, num_processes)
    run.start()
    assert run.wait(), (run.work_dir / 'output').read_text()
    return run


def stopped_run() -> Run:
    """Return a run over epochs, killed when it had some checkpoints."""
    run = Run('epochs')
    run.start()
    run.kill(after=11)
    return run


def same(one: Any, other: Any) -> bool:
    """Return whether nested states are equal, bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def report(fault: str, injected: int, survived: int, runs: list[Run]) -> None:
    """Compare finished runs with one that nothing broke, and print a line."""
    lost, equal = 0, True
    for run in runs:
        losses, whole = run.losses(), whole_run(run.loop, run.num_processes)
        lost += len(losses) - len(dict(losses))
        equal &= set(losses) == set(whole.losses())
        equal &= same(run.state(), whole.state())
    text = 'yes' if equal else 'NO'
    print(f'| {fault} | {injected} | {survived} | {lost} | {text} |')
    if survived != injected or not equal:
        sys.exit(f'{fault}: not survived')


def kill_at_random(loop: str, num_processes: int, count: int) -> None:
    """Kill runs at random moments, as often as they need, and resume."""
    runs, injected, survived = [], 0, 0
    while injected < count:
        runs.append(run := Run(loop, num_processes))
        kills = 0
        run.start()
        while injected + kills < count and run.kill(
            CHANCE.randrange(4), CHANCE.uniform(0, 0.2)
        ):
            kills += 1
            run.start()
        injected += kills
        survived += kills * run.wait()
    fault = f'SIGKILL, {loop}, processes: {num_processes}'
    report(fault, injected, survived, runs)


def damage_newest(name: str, count: int) -> None:
    """Damage the newest checkpoint of runs that were killed."""
    runs, survived = [], 0
    for _ in range(count):
        runs.append(run := stopped_run())
        path = run.newest()
        content = path.read_bytes()
        at = CHANCE.randrange(len(content) // 4, len(content) // 2)
        path.write_bytes(HARMS[name](content, at))
        run.start()
        told = f'warning: {path} is damaged'
        survived += (
            run.wait() and told in (run.work_dir / 'output').read_text()
        )
    report(f'newest checkpoint: {name}', count, survived, runs)


def fill_the_disk() -> None:
    """Leave no room for a checkpoint, and then enough."""
    run = stopped_run()
    before = sorted(run.work_dir.glob('*.pth'))
    run.start(max_bytes=before[0].stat().st_size // 2)
    refused = not run.wait()
    last = (run.work_dir / 'output').read_text().splitlines()[-1]
    told = last.startswith('lors_det.errors.UsageError: ')
    kept = sorted(run.work_dir.glob('*.pth*')) == before
    whole = not any(map(find_damage, before))
    run.start()
    survived = run.wait() and refused and told and kept and whole
    report('no room for a checkpoint', 1, int(survived), [run])


def main() -> None:
    """Print the table, until something was not survived."""
    parser = argparse.ArgumentParser(description='Break training runs.')
    parser.add_argument('--short', action='store_true', help='kill one run')
    short = parser.parse_args().short
    os.chdir(ROOT)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # or each process goes through all that was imported
    # Left out, as they take longer than the training: to describe the machine
    # at each start, and to format the config's text for each checkpoint.
    vars(mmengine_runner)['collect_env'] = dict
    vars(yapf_api)['FormatCode'] = lambda text, **_: (text, True)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print('| fault | injected | survived | iterations lost | losses equal |')
    print('| --- | ---: | ---: | ---: | --- |')
    with tempfile.TemporaryDirectory() as tempfile.tempdir:
        if short:
            return kill_at_random('epochs', 1, 1)
        for loop in LOOPS:
            for num_processes in (1, 2):
                kill_at_random(loop, num_processes, 20)
        for name in HARMS:
            damage_newest(name, 5)
        fill_the_disk()


if __name__ == '__main__':
    main()
