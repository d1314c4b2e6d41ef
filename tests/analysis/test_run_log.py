# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

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
