# SPDX-License-Identifier: Apache-2.0
"""A sweep, killed once in the middle, on a few of the embedded images."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/demo/lors-adamixer_r18_coco-tiny.py'
# A detector and a schedule that take seconds.
SMALL = {
    'model.num_queries': 8,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 32,
    'model.decoder.embed_dims': 32,
    'model.decoder.feedforward_channels': 16,
    'model.decoder.in_points': 4,
    'model.decoder.out_points': 4,
    'model.decoder.stacks.mixing_kernels.rank': 2,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'train_cfg.max_iters': 3,
    'train_cfg.val_interval': 3,
    'default_hooks.checkpoint.interval': 1,
    'default_hooks.logger.interval': 1,
}


@pytest.mark.slow
def test_a_sweep_that_is_killed_once(tmp_path: Path) -> None:
    file = tmp_path / 'sweep.yml'
    file.write_text(
        yaml.safe_dump(
            {'configs': [CONFIG], 'seeds': [0, 1]} | {'options': SMALL}
        )
    )
    out, log = tmp_path / 'out', tmp_path / 'sweep.log'
    command = [
        sys.executable, 'tools/sweep.py', str(file), '--work-dir', str(out)
    ]  # fmt: skip
    with log.open('wb') as stdout:
        killed = subprocess.Popen(
            command, cwd=ROOT, stdout=stdout, stderr=subprocess.STDOUT
        )
    try:
        # In the middle: one run is done, the next has written a checkpoint.
        _wait_for(out, '*_seed-1/last_checkpoint', killed, log)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    finished = {
        path: path.stat().st_mtime_ns for path in out.glob('*/result.json')
    }
    assert len(finished) == 1
    again = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        env=os.environ,
    )
    assert again.returncode == 0, again.stdout[-4000:]
    for path, before in finished.items():
        assert path.stat().st_mtime_ns == before
    assert 'seed-0: finished' in again.stdout
    assert 'seed-1: interrupted, has iter_' in again.stdout
    resumed = next(out.glob('lors*_seed-1')) / 'output.log'
    assert 'resumed epoch: 0, iter: ' in resumed.read_text()

    with (out / 'results.csv').open() as table:
        rows = list(csv.DictReader(table))
    assert [(row['config'], row['seed']) for row in rows] == [
        (CONFIG, seed) for seed in '01'
    ]
    for row in rows:
        assert 0 <= float(row['bbox_mAP']) <= float(row['bbox_mAP_50']) <= 1
        assert float(row['train_seconds']) > 0
        assert float(row['memory_mib']) > 50
        assert int(row['decoder_parameters']) > 1000
    summary = (out / 'summary.md').read_text()
    assert '2 of 2 runs are finished' in summary
    assert summary.count(' | 2 | 0.') == 1  # a line of two seeds
    for ending in ('png', 'svg'):
        assert (out / f'summary.{ending}').stat().st_size > 1000


def _wait_for(
    folder: Path, pattern: str, process: subprocess.Popen[bytes], log: Path
) -> None:
    """Wait for a file of a process that must not end before."""
    deadline = time.monotonic() + 300
    while not any(folder.glob(pattern)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
