# SPDX-License-Identifier: Apache-2.0
"""What tools/check_dataset.py says before a run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from helpers.command_lines import CONFIG, run_here
from helpers.small_coco import change, config, content, spoil, write


def check(*arguments: str) -> str | int | None:
    """Run the tool in this process; return its exit status or message."""
    with pytest.raises(SystemExit) as info:
        run_here('tools/check_dataset.py', *arguments)
    return info.value.code


def write_config(root: Path) -> str:
    """A config with two data sets for training, one wrapped."""
    train = config(root, type='CheckedCocoDataset')
    both = {
        'type': 'ConcatDataset',
        'datasets': [
            {'type': 'RepeatDataset', 'times': 2, 'dataset': train},
            config(root, type='CocoDataset', ann_file='other.json'),
        ],
    }
    lines = {
        'train_dataloader': {'dataset': both},
        'val_dataloader': {'dataset': {**train, 'test_mode': True}},
        'test_dataloader': None,
        'model': {'num_queries': 2},
    }
    text = '\n'.join(f'{key} = {value!r}' for key, value in lines.items())
    (root / 'config.py').write_text(text)
    return str(root / 'config.py')


def test_clean_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(CONFIG) == 0
    output = capsys.readouterr()
    assert output.out.count('a run uses 19 images\nno defects') == 2
    assert output.err.count('images: 100%') == 2  # progress


def test_defects_and_their_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    again = {**content()['annotations'][2], 'id': 99}
    spoil(
        tmp_path,
        change('annotations', 0, bbox=[math.nan, 4, 9, 9]),
        lambda c: c['annotations'].append(again),
    )
    (tmp_path / 'other.json').write_text(json.dumps(content())[:-9])
    (tmp_path / 'images/3.png').write_bytes(b'')
    (tmp_path / 'images/4.png').unlink()
    report = tmp_path / 'no such folder/report.json'
    arguments = (write_config(tmp_path), '--num-workers', '0')
    assert check(*arguments, '--json', str(report)) == 1
    output = capsys.readouterr().out
    assert 'train_dataloader.dataset: ' in output
    assert 'a run is refused: ' in output
    assert 'other.json is no JSON, or cut off' in output

    first, second, val = json.loads(report.read_text())
    assert first['ann_file'] == val['ann_file'] == f'{tmp_path}/ann.json'
    assert (first['refused'], first['num_images']) == (None, 4)
    found = {k: v['count'] for k, v in first['defects'].items()}
    assert found == {
        'box, area or iscrowd that is no proper number': 1,
        'more boxes in an image than queries': 1,
        'empty image file': 1,
        'missing image': 1,
    }
    missing = first['defects']['missing image']
    assert missing['first'] == [f'{tmp_path}/images/4.png']
    assert missing['answer'].startswith('replaced in training')
    assert second['refused'].startswith(f'{tmp_path}/other.json is no JSON')
    for kind, count in found.items():
        assert f'| {kind}' in output
        assert count == val['defects'][kind]['count']
    # A part that would start.
    assert check(*arguments, '--split', 'val') == 0


def test_what_a_run_refuses_leads_to_no_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path)
    (tmp_path / 'secret.png').write_bytes(b'secret')
    spoil(tmp_path, change('images', 0, file_name='../secret.png'))
    opened: list[str] = []
    watching = True  # a hook stays as long as its process

    def watch(event: str, args: tuple) -> None:
        if watching and event == 'open':
            opened.append(Path(str(args[0])).name)

    sys.addaudithook(watch)
    assert check(write_config(tmp_path), '--split', 'val') == 1
    watching = False
    output = capsys.readouterr().out
    assert "leads out of the image folder: 1 ('../secret.png')" in output
    assert 'ann.json' in opened
    assert 'secret.png' not in opened


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['configs/deit/deit-tiny_digits.py'],
            "error: train_dataloader.dataset.type='DigitImages': expected "
            "one of ['CocoDataset', 'CheckedCocoDataset']",
        ),
        (
            [CONFIG, '--json', '/dev/null/report.json'],
            'error: /dev/null/report.json cannot be written: File exists',
        ),
    ],
)
def test_one_clear_line(arguments: list[str], message: str) -> None:
    assert check(*arguments) == message
