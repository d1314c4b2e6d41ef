# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.command_lines import ROOT
from helpers.toy_runs import toy_run
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from lors_det.analysis.run_log import plot_runs, read_starts
from lors_det.errors import UsageError


def write(work_dir: Path, start: str, *records: dict[str, float]) -> None:
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    lines = ''.join(json.dumps(each) + '\n' for each in records)
    (folder / 'scalars.json').write_text(lines + '{"iter": 9')  # killed


def step(number: int) -> dict[str, float]:
    return {'iter': number, 'step': number, 'loss': 1 / number, 'lr': 0.1}


def test_a_resumed_run(tmp_path: Path) -> None:
    run = tmp_path / 'run'
    write(run, '2026_1', step(10), {'coco/bbox_mAP': 0.1, 'step': 0}, step(20))
    write(run, '2026_2', step(20), step(30), {'coco/bbox_mAP': 0.2, 'step': 0})
    first, second = read_starts(run)
    assert [each['step'] for each in first] == [10, 0, 20]
    assert second[-1]['coco/bbox_mAP'] == 0.2
    for ending in ('svg', 'png'):
        file = tmp_path / 'new' / f'run.{ending}'
        plot_runs([str(run)], file)
        assert file.stat().st_size > 1000
    assert (
        'metric of the evaluations' in (tmp_path / 'new/run.svg').read_text()
    )


def test_what_cannot_be_plotted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'WORK_DIR .*: no log of a training'):
        plot_runs([str(tmp_path)], tmp_path / 'a.svg')
    write(tmp_path, '1', step(1))
    with pytest.raises(UsageError, match=r'--out .*a\.doc: .*not supported'):
        plot_runs([str(tmp_path)], tmp_path / 'a.doc')


def test_the_tensorboard_setting_of_the_documents(tmp_path: Path) -> None:
    text = (ROOT / 'docs' / 'analysis.md').read_text()
    setting = re.search(r'^visualizer = .*?^\)$', text, re.M | re.S)[0]
    base = ROOT / 'configs' / '_base_' / 'default_runtime.py'
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(base)!r}\n{setting}\n')
    visualizer = Config.fromfile(config).visualizer
    visualizer.type = f'mmdet.{visualizer.type}'
    visualizer.name = 'tensorboard'  # mmengine keeps visualizers by name

    run = tmp_path / 'run'
    toy_run(run, loop='iterations', visualizer=visualizer)
    events = EventAccumulator(str(next(run.rglob('events.*')).parent))
    events.Reload()
    shown = {each.step: each.value for each in events.Scalars('loss')}
    logged = {each['step']: each['loss'] for each in read_starts(run)[0]}
    assert shown
    assert shown == pytest.approx(logged, rel=1e-5)
