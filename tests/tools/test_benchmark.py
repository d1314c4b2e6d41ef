# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command_lines import CONFIG, ROOT, run_here
from helpers.factories import build, detector_config

from lors_det.analysis.benchmark import Options, measure

TOOL = 'tools/benchmark.py'


def test_two_detectors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dense = tmp_path / 'dense.py'
    dense.write_text(
        f'_base_ = {str(ROOT / CONFIG)!r}\n'
        'model = dict(decoder=dict(stacks=dict(\n'
        "    mixing_kernels=dict(mode='dense'))))\n"
    )
    out = tmp_path / 'times.json'
    run_here(
        TOOL, CONFIG, dense, '--image-size', '32', '64',
        '--batch-size', '1', '--repeats', '1', '--json', out,
        '--dtype', 'float32', 'bfloat16',
    )  # fmt: skip
    data = json.loads(out.read_text())
    assert data['options']['batch_size'] == 1
    assert list(data['results']) == [
        f'{name} {dtype}'
        for name in (CONFIG, dense)
        for dtype in ('float32', 'bfloat16')
    ]
    parts = ['backbone', 'neck', 'decoder', 'post-processing']
    for found in data['results'].values():
        assert len(found['seconds']) == 1
        assert list(found['parts']) == parts
        assert all(len(taken) == 1 for taken in found['parts'].values())
        # The finest of four levels of the neck: 128 channels, stride 4.
        assert found['peak_bytes'] > 128 * 8 * 16 * 4
    assert 'images/s' in capsys.readouterr().out


def test_training_step() -> None:
    model = build(detector_config('lors')).train()
    options = Options(image_size=(64, 64), train=True, repeats=1)
    found = measure({'lors': model}, options)['lors']
    assert all(p.grad is not None for p in model.parameters())
    assert list(found['parts']) == [
        'backbone', 'neck', 'decoder', 'criterion', 'backward',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([CONFIG, CONFIG], 'CONFIG: one is named twice'),
        ([CONFIG, '--batch-size', '0'], '--batch-size 0: expected 1 or more'),
        ([CONFIG, '--image-size', '64', '-1'], '--image-size -1: expected'),
        (
            [CONFIG, '--device', 'tpu'],
            '--device tpu: is not there; ',
        ),
        (
            ['configs/deit/deit-tiny_digits.py'],
            "deit-tiny_digits.py: model.type=.* expected 'AdaMixer'",
        ),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run_here(TOOL, *arguments)
