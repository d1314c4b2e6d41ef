# SPDX-License-Identifier: Apache-2.0
"""The tools refuse wrong checkpoints instead of measuring random weights."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command_lines import ROOT, run_here
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from lors_det.hooks.checkpoint import latest_checkpoint

CONFIG = 'tests/helpers/soak_config.py'
IN_ONE_PROCESS = (
    'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'
)  # fmt: skip


def run(tool: str, *arguments: str | Path) -> None:
    run_here(f'tools/{tool}.py', CONFIG, *arguments)


@pytest.mark.slow
def test_a_model_of_nan_finds_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    register_all_modules()
    model = MODELS.build(Config.fromfile(ROOT / CONFIG).model)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, math.nan)
    path = tmp_path / 'a.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    run('test', path, '--work-dir', tmp_path, '--cfg-options', *IN_ONE_PROCESS)
    output = ''.join(capfd.readouterr())
    assert re.search(r'a\.pth: weights that are not finite: \d+ \(', output)
    assert '152 detections are not finite and were dropped' in output
    assert not re.search(r'bbox_mAP: 0\.0*[1-9]', output)


@pytest.mark.parametrize('killed', [False, True])
def test_an_overwritten_run_is_not_resumed(
    killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a run that was killed before its first checkpoint."""
    old = tmp_path / 'iter_6.pth'
    torch.save({'meta': {'epoch': 0, 'iter': 6}, 'state_dict': {}}, old)

    def kill(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, 'train', kill)
    if killed:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run('train', '--work-dir', tmp_path, '--overwrite')
        assert latest_checkpoint(str(tmp_path)) is None
    else:  # nor is it set aside for a command that is refused
        for option, message in (
            ('train_dataloader.dataset.ann_file=none.json', 'does not exist'),
            ('model.num_query=3', 'num_query=3: unknown key'),
        ):
            with pytest.raises(SystemExit, match=message):
                run(
                    'train', '--work-dir', tmp_path, '--overwrite',
                    '--cfg-options', option,
                )  # fmt: skip
            assert latest_checkpoint(str(tmp_path)) == str(old)
