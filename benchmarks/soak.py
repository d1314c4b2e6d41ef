# SPDX-License-Identifier: Apache-2.0
"""Break training runs, and compare them with runs that nothing broke.

    python -m benchmarks.soak [--short]

The runs are forked from this process, which has imported everything: they
start in a fraction of a second. The table goes to the standard output.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext

import torch  # isort: skip

from mmengine.config import Config
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from benchmarks.soak_run import LOOPS, ROOT, SHORT, SMALL, Run, fork, prepare
from lors_det.hooks.checkpoint import damage, newest_checkpoint

DEMO = 'configs/demo/lors-adamixer_r18_coco-tiny.py'


@dataclass
class Row:
    """A line of the table.

    Args:
        fault: What was done.
        injected: How often.
        survived: How often it did no harm.
        lost: Iterations that were done twice.
        equal: Whether losses and weights equal those of a run without faults.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    equal: bool = True


class Soak:
    """What the faults share: a folder, chance, and runs without faults.

    Args:
        folder: For all runs.
        short: Whether to break less, in less time.
    """

    def __init__(self, folder: Path, short: bool) -> None:
        self.folder = folder
        self.short = short
        self.chance = random.Random(0)
        self.whole: dict[tuple[str, int], Run] = {}
        self.killed: Run | None = None
        self.count = 0

    def new_run(self, loop: str, processes: int) -> Run:
        """A run, not started."""
        config = self.folder / f'{loop}.py'
        if not config.exists():
            cfg = Config.fromfile(ROOT / DEMO)
            cfg.merge_from_dict({**SMALL, **LOOPS[loop]})
            if self.short:
                cfg.merge_from_dict({**SHORT[loop]})
            cfg.dump(config)
        return Run(config, self.new_folder(), processes)

    def new_folder(self) -> Path:
        """A folder that is not there yet."""
        self.count += 1
        return self.folder / f'run{self.count}'

    def is_equal(self, run: Run, loop: str) -> bool:
        """Whether a finished run equals one without faults, bit by bit."""
        key = (loop, run.processes)
        if key not in self.whole:
            self.whole[key] = self.new_run(*key)
            self.whole[key].start()
            if not self.whole[key].wait():
                raise RuntimeError(self.whole[key].output())
        whole = self.whole[key]
        expected = dict(whole.losses())
        losses = run.losses()
        return (
            {step for step, _ in losses} == set(expected)
            and all(expected[step] == loss for step, loss in losses)
            and same(last_state(run), last_state(whole))
        )

    def lost(self, run: Run) -> int:
        """How many iterations were done more than once."""
        losses = run.losses()
        return len(losses) - len({step for step, _ in losses})

    def stopped(self) -> Run:
        """A run over epochs that was killed when it had some checkpoints."""
        if self.killed is None:
            self.killed = self.new_run('epochs', 1)
            self.killed.start()
            self.killed.kill(after=11, delay=0.0)
        return self.killed.copy(self.new_folder())


SKIPPED = ('meta', 'message_hub')  # time stamps, folders


def newest(run: Run) -> Path:
    """The newest whole checkpoint of a run that has written one."""
    path = newest_checkpoint(str(run.work_dir))
    assert path is not None, run.work_dir
    return Path(path)


def last_state(run: Run) -> dict[str, object]:
    """Weights, their averages, optimiser, schedule of the last checkpoint."""
    checkpoint = torch.load(newest(run), weights_only=False)
    return {k: checkpoint[k] for k in checkpoint if k not in SKIPPED}


def same(one: Any, other: Any) -> bool:
    """Whether nested states are equal, bit by bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            same(one[key], other[key]) for key in one
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def kills(soak: Soak, loop: str, processes: int, count: int) -> Row:
    """Kill runs at random points, as often as they need, and resume."""
    row = Row(f'SIGKILL, {loop}, processes: {processes}')
    while row.injected < count:
        run = soak.new_run(loop, processes)
        injected = 0
        while row.injected + injected < count:
            run.start()
            moment = soak.chance.randrange(4), soak.chance.uniform(0, 0.2)
            if not run.kill(*moment):
                break
            injected += 1
        run.start()
        if run.wait():
            row.survived += injected
        row.injected += injected
        row.lost += soak.lost(run)
        row.equal &= soak.is_equal(run, loop)
    return row


def killed_runs(soak: Soak) -> Iterator[Row]:
    """SIGKILL at random points of both loops, one process and two."""
    if soak.short:
        yield kills(soak, 'epochs', 1, 14)
        yield kills(soak, 'iterations', 2, 6)
        return
    for loop in LOOPS:
        for processes in (1, 2):
            yield kills(soak, loop, processes, 20)


def cut_off(path: Path, chance: random.Random) -> None:
    """Leave a random part of a file, from the beginning."""
    os.truncate(path, chance.randrange(path.stat().st_size))


def flip_a_bit(path: Path, chance: random.Random) -> None:
    """Change a bit among those of the tensors."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(len(content) // 4, len(content) // 2)
    content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def make_zeros(path: Path, chance: random.Random) -> None:
    """As some file systems do when the power fails."""
    path.write_bytes(bytes(path.stat().st_size))


def damaged_files(soak: Soak) -> Iterator[Row]:
    """Damage the newest checkpoint of a run that was killed."""
    harms = (cut_off, flip_a_bit, make_zeros)
    for harm in harms[:1] if soak.short else harms:
        name = harm.__name__.replace('_', ' ')
        row = Row(f'newest checkpoint: {name}')
        for _ in range(1 if soak.short else 5):
            run = soak.stopped()
            path = newest(run)
            harm(path, soak.chance)
            row.injected += 1
            run.start()
            told = f'warning: {path} is damaged'
            row.survived += run.wait() and told in run.output()
            row.lost += soak.lost(run)
            row.equal &= soak.is_equal(run, 'epochs')
        yield row


def full_disks(soak: Soak) -> Iterator[Row]:
    """A checkpoint that does not fit, and room for it later."""
    run = soak.stopped()
    path = newest(run)
    before = sorted(run.work_dir.glob('*.pth'))
    run.start(max_bytes=path.stat().st_size // 2)
    ended_well = run.wait()
    last = run.output().splitlines()[-1]
    told = last.startswith(f'error: {run.work_dir}/iter_')
    kept = sorted(run.work_dir.glob('*.pth*')) == before
    whole = not any(damage(path) for path in before)
    run.start()
    survived = int(run.wait() and told and kept and whole and not ended_well)
    equal = soak.is_equal(run, 'epochs')
    yield Row('no room for a checkpoint', 1, survived, soak.lost(run), equal)


def lost_workers(soak: Soak) -> Iterator[Row]:
    """Kill one of two processes: the launcher starts both again."""
    if soak.short:
        return  # tests/tools/test_train_and_test.py does it
    row = Row('SIGKILL of one process under the launcher')
    run = soak.new_run('iterations', 2)
    pids = run.work_dir / 'pids'

    def worker() -> None:
        # As in a process that was not forked from the launcher.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with pids.open('a') as file:
            print(os.getpid(), os.environ['LOCAL_RANK'], file=file)
        run.train(None)

    def launcher() -> None:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=2, run_id='soak',
            rdzv_backend='c10d', rdzv_endpoint='localhost:0', max_restarts=3,
            start_method='fork', monitor_interval=0.1,
        )  # fmt: skip
        elastic_launch(config, worker)()

    run.pids = [fork(launcher)]
    for _ in range(3):
        run.reach(len(run.losses()) + 5)
        pid = soak.chance.choice(pids.read_text().split('\n')[-3:-1])
        os.kill(int(pid.split()[0]), signal.SIGKILL)
        row.injected += 1
    if run.wait():
        row.survived = row.injected
    row.lost = soak.lost(run)
    row.equal = soak.is_equal(run, 'iterations')
    yield row


# Each gives lines of the table.
FAULTS = (killed_runs, damaged_files, full_disks, lost_workers)


def main() -> None:
    """Print the table; fail if something was not survived."""
    parser = argparse.ArgumentParser(description='Break training runs.')
    parser.add_argument('--short', action='store_true', help='as in CI')
    parser.add_argument('--folder', help='keep the runs there')
    args = parser.parse_args()
    prepare()
    print('| fault | injected | survived | iterations lost | losses equal |')
    print('| --- | ---: | ---: | ---: | --- |', flush=True)
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(Path(args.folder or temporary), args.short)
        for fault in FAULTS:
            for row in fault(soak):
                bad += row.survived != row.injected or not row.equal
                print(
                    f'| {row.fault} | {row.injected} | {row.survived} '
                    f'| {row.lost} | {"yes" if row.equal else "NO"} |',
                    flush=True,
                )
    if bad:
        sys.exit(f'{bad} lines show harm')


if __name__ == '__main__':
    main()
