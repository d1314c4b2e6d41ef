# SPDX-License-Identifier: Apache-2.0
"""A sweep on a few of the embedded images, ended once in the middle."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.command_lines import CONFIG, ROOT, SMALL

OPTIONS = {
    key: yaml.safe_load(value)
    for key, value in (option.split('=') for option in SMALL)
}
# Enough iterations to end the sweep between two of them.
OPTIONS |= {'train_cfg.max_iters': 20, 'train_cfg.val_interval': 20}


@pytest.mark.slow
def test_a_sweep_that_is_ended_once(tmp_path: Path) -> None:
    file, out = tmp_path / 'sweep.yml', tmp_path / 'out'
    file.write_text(
        yaml.safe_dump({'configs': [CONFIG], 'seeds': [0], 'options': OPTIONS})
    )
    command = [
        sys.executable, 'tools/sweep.py', str(file), '--work-dir', str(out)
    ]  # fmt: skip
    options: dict[str, Any] = {'cwd': ROOT, 'text': True}
    ended = subprocess.Popen(command, stderr=subprocess.PIPE, **options)
    try:  # its run has written a checkpoint
        deadline = time.monotonic() + 300
        while not any(out.glob('*_seed-0/last_checkpoint')):
            assert ended.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        ended.send_signal(signal.SIGTERM)
        message = ended.communicate()[1]
    assert message.endswith('the same command resumes the sweep\n')
    assert not (out / 'results.csv').exists()

    again = subprocess.run(
        command, timeout=300, check=True, capture_output=True, **options
    )
    assert '0 of 1 runs are finished' in again.stdout
    resumed = next(out.glob('*_seed-0')) / 'output.log'
    assert 'resumed epoch: 0, iter: ' in resumed.read_text()
    rows = pd.read_csv(out / 'results.csv')
    assert list(rows['config']) == [CONFIG]
    assert list(rows['schedule']) == ['20 iters']
    assert rows['best'].between(0, 1).all()
    assert (rows['memorised/bbox_mAP'] <= rows['memorised/bbox_mAP_50']).all()
    assert (rows['seconds_per_step'] > 0).all()
    assert '| 1 ' in (out / 'results.md').read_text()  # a line of one seed
    assert (out / 'results.svg').stat().st_size > 1000
