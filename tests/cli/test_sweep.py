# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.command_lines import CONFIG, ROOT, SMALL, run_here
from mmengine.config import Config

import lors_det
from lors_det.cli import sweep
from lors_det.cli.boundary import OneLineErrors
from lors_det.cli.configs import init
from lors_det.cli.sweep import _lock, read_sweep, run_sweep, write_summary
from lors_det.errors import UsageError

STEM = 'lors-adamixer_r18_coco-tiny'
STACKS = 'model.decoder.stacks'
RANK = f'{STACKS}.mixing_kernels.rank'
# Stands in for tools/train.py: leaves what it would leave. A file has one
# word per start: what is to happen.
FAKE = """
import json, os, pathlib, signal, sys, time
assert sys.argv[2::2] == ['--work-dir', '--resume']
work_dir = pathlib.Path(sys.argv[3])
plan = work_dir.parents[1] / 'plan'
words = plan.read_text().split()
what = words.pop(0) if words else 'finish'
plan.write_text(' '.join(words))
with (work_dir.parent / 'starts').open('a') as file:
    file.write(work_dir.name + '\\n')
number = len((work_dir.parent / 'starts').read_text().split())
if what == 'fail':
    sys.exit('lots of words\\nno luck')
if what == 'end':
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
if what == 'together':
    (work_dir / 'here').touch()
    for _ in range(200):
        time.sleep(0.1)
        if len(list(work_dir.parent.glob('*/here'))) == 2:
            break
    else:
        sys.exit('alone')
logs = work_dir / f'2026_{number}' / 'vis_data'
logs.mkdir(parents=True)
records = [{'iter': 1, 'time': 0.5}, {'iter': 2, 'time': 0.7}]
(work_dir / 'iter_2.pth').touch()
if what in ('finish', 'together'):
    time_of_val = {'time': 9, 'data_time': 1, 'step': 2}
    metrics = {'x/mAP': number / 10, 'x/mAP_s': -1}
    records += [{'x/mAP': 0.8, 'x/mAP_s': 0, 'step': 1}, metrics | time_of_val]
text = '\\n'.join(map(json.dumps, records))
(logs / 'scalars.json').write_text(text + '\\n{"it' * (what == 'killed'))
sys.exit(9 if what == 'killed' else 0)
"""


class Folder:
    """A sweep file with one config and two seeds, and faked trainings."""

    def __init__(self, path: Path) -> None:
        self.path, self.out = path, path / 'out'
        (path / 'fake.py').write_text(FAKE)

    def describe(self, **changes: Any) -> str:
        file = self.path / 'sweep.yml'
        command = ['python', str(self.path / 'fake.py')]
        content = {'configs': [CONFIG], 'seeds': [0, 1], 'command': command}
        file.write_text(yaml.safe_dump({**content, **changes}))
        return str(file)

    def sweep(
        self, plan: str = '', arguments: Any = (), **changes: Any
    ) -> int:
        """Run the sweep; return how many trainings it started."""
        args = {
            'sweep': self.describe(**changes), 'work_dir': str(self.out),
            'results': None, 'parallel': 1, 'keep_going': False,
            'dry_run': False, **dict(arguments),
        }  # fmt: skip
        before = len(self.starts())
        (self.path / 'plan').write_text(plan)
        run_sweep(argparse.Namespace(**args))
        return len(self.starts()) - before

    def error(self, *args: Any, **changes: Any) -> str:
        """Run a sweep that fails; return its message."""
        with pytest.raises(SystemExit) as caught, OneLineErrors():
            self.sweep(*args, **changes)
        return str(caught.value).removeprefix('error: ')

    def starts(self) -> list[str]:
        file = self.out / 'starts'
        return file.read_text().split() if file.is_file() else []

    def rows(self) -> list[dict[str, str]]:
        rows = pd.read_csv(self.out / 'results.csv', dtype=str)
        return rows.to_dict('records')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Multiply-adds are not counted: it takes longer than all the rest."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sweep, 'count_macs', lambda model: {'decoder': 1e9})
    return Folder(tmp_path)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({'config': []}, "SWEEP: no key 'config'; did you mean 'configs'?"),
    ({'configs': []}, 'SWEEP: configs=[]: expected a list of str'),
    ({'configs': [CONFIG] * 2}, f'SWEEP: configs={[CONFIG] * 2}: two'),
    ({'configs': ['no.py']}, 'CONFIG: no.py does not exist'),
    ({'seeds': None}, 'SWEEP: seeds=None: expected a list of int'),
    ({'seeds': ['a']}, "SWEEP: seeds=['a']: expected a list of int"),
    ({'grid': {RANK: 4}}, f'SWEEP: grid.{RANK}=4: expected a list of values'),
    ({'grid': {RANK: [4, 4]}}, f'SWEEP: two runs are called {STEM}_rank-4_se'),
    ({'grid': [RANK]}, f'SWEEP: grid={[RANK]}: expected settings by their '),
    ({'options': {'randomness.seed': 1}}, 'SWEEP: options={'),
    ({'command': 'srun'}, "SWEEP: command='srun': expected a list of str"),
    ({'grid': {'modle.num_queries': [1]}}, 'SWEEP: modle.num_queries=1: '
     "nothing reads 'modle'; did you mean 'model'?"),
    ({'grid': {'model.num_querys': [1]}}, 'CONFIG: model.num_querys=1: '
     "unknown key; did you mean 'num_queries'?"),
    ({'grid': {f'{STACKS}.ffn.mode': ['dense', 'lor']}},
     f"CONFIG: {STACKS}.ffn.mode='lor': expected"),
    ({'options': {'train_dataloader.dataset.ann_file': 'no.json'}},
     'train_dataloader.dataset.ann_file: demo/coco_tiny/no.json does not'),
    ({'options': {'val_cfg': None}}, f'SWEEP: {CONFIG}: val_cfg=None: '),
]  # fmt: skip


@pytest.mark.parametrize(('changes', 'message'), MISTAKES)
def test_a_mistake_is_found_before_training(
    changes: dict[str, Any], message: str, folder: Folder
) -> None:
    text = folder.error(**changes)
    assert text.startswith(message)
    assert '\n' not in text
    assert not folder.out.exists()


def test_files_that_are_no_description(tmp_path: Path) -> None:
    path = tmp_path / 'sweep.yml'
    with pytest.raises(UsageError, match=r'^SWEEP: .* does not exist$'):
        read_sweep(str(path))
    path.write_text('configs: [a\nseeds: ]')
    with pytest.raises(UsageError, match=r'^SWEEP: .* is no YAML: .*line 2'):
        read_sweep(str(path))
    path.write_text('- configs')
    with pytest.raises(UsageError, match=r'expected keys out of .*configs'):
        read_sweep(str(path))


def test_what_a_run_is_trained_with(folder: Folder) -> None:
    path = folder.path / 'sweep.yml'
    folder.sweep(
        seeds=[7],
        grid={f'{STACKS}.mixing_kernels': [{'mode': 'dense', 'rank': 0}]},
        options={'param_scheduler.0.end': 3, 'visualizer.name': 'a b'},
    )
    name = f'{STEM}_mixing_kernels-mode-dense-rank-0_seed-7'
    cfg = Config.fromfile(folder.out / f'{name}.py')
    assert cfg.randomness.seed == 7
    assert cfg.model.decoder.stacks.mixing_kernels.mode == 'dense'
    assert cfg.param_scheduler[0].end == 3
    assert cfg.visualizer.name == 'a b'
    assert cfg.train_pipeline == Config.fromfile(CONFIG).train_pipeline
    path.write_text('{configs: [a], seeds: [0], options: {lr: 4e-4}}')
    assert read_sweep(str(path)).options == {'lr': 4e-4}


def test_finished_runs_are_not_repeated(folder: Folder) -> None:
    grid = {RANK: [2, 4]}
    message = folder.error('finish killed', grid=grid)
    assert message.startswith(f'{STEM}_rank-4_seed-0 failed with exit status')
    assert len(folder.rows()) == 1
    assert folder.sweep(grid=grid) == 3
    rows = folder.rows()
    assert [(row[RANK], row['seed']) for row in rows] == [
        ('2', '0'), ('4', '0'), ('2', '1'), ('4', '1')
    ]  # fmt: skip
    assert [row['run'] for row in rows] == [
        folder.starts()[i] for i in (0, 2, 3, 4)
    ]
    expected = {
        'x/mAP': '0.3', 'x/mAP_s': '-1', 'best': '0.8',
        'schedule': '1000 iters', 'seconds_per_step': '0.6',
    }  # fmt: skip
    assert rows[1] | expected == rows[1]
    assert int(rows[1]['parameters']) > int(rows[2]['parameters'])
    assert folder.sweep(grid=grid) == 0
    # Seeds, values and configs can be added, and so can keys.
    assert folder.sweep(grid={RANK: [2, 8]}, seeds=[0, 1, 2]) == 4
    assert folder.sweep(grid={f'{STACKS}.ffn.mode': ['shared']}) == 2
    assert folder.rows()[0][f'{STACKS}.ffn.mode'] == 'shared'


def test_a_sweep_that_is_ended(
    folder: Folder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By SIGTERM, which ends its run too."""
    before = signal.getsignal(signal.SIGTERM)
    command = ['tools/sweep.py', folder.describe(), '--work-dir', folder.out]
    (folder.path / 'plan').write_text('finish end')
    try:
        with pytest.raises(SystemExit, match='130'):
            run_here(*command)
    finally:
        signal.signal(signal.SIGTERM, before)
    message = 'interrupted; the same command resumes the sweep\n'
    assert capsys.readouterr().err.endswith(message)
    assert [row['seed'] for row in folder.rows()] == ['0']
    assert folder.sweep() == 1


@pytest.mark.slow
def test_real_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = Folder(tmp_path)
    options = (option.split('=') for option in SMALL)
    folder.sweep(
        command=['python', 'tools/train.py'],
        seeds=[0],
        options={key: yaml.safe_load(value) for key, value in options},
    )
    (row,) = folder.rows()
    assert (row['config'], row['schedule']) == (CONFIG, '4 iters')
    assert 0 <= float(row['best']) <= 1
    assert 'memorised/bbox_mAP_50' in row
    assert float(row['seconds_per_step']) > 0
    assert float(row['decoder_gmacs']) > 0
    assert '| 1 ' in (folder.out / 'results.md').read_text()  # of one seed


def test_models_are_compared_with_the_first_at_equal_settings(
    folder: Folder,
) -> None:
    file = folder.path / 'depth.csv'
    columns = dict.fromkeys(['config', 'settings', 'commit', 'schedule'], 'x')
    score = {('dense', 1): 0.1, ('dense', 2): 0.3, ('LORS', 1): 0.15,
             ('LORS', 2): 0.28}  # fmt: skip
    pd.DataFrame(
        [
            {'run': f'{model}-{depth}-{seed}', 'model': model, **columns,
             'depth': depth, 'seed': seed, 'parameters': 1,
             'x/mAP': value + seed / 100}
            for seed in (0, 1)
            for (model, depth), value in score.items()
        ]
    ).to_csv(file, index=False)  # fmt: skip
    write_summary(file)
    rows = file.with_suffix('.md').read_text().splitlines()[2:6]
    cells = [[cell.strip() for cell in row.split('|')] for row in rows]
    assert [(c[1], c[2], float(c[5].split(' ')[0])) for c in cells] == [
        ('dense', '1', 0), ('dense', '2', 0),
        ('LORS', '1', 0.05), ('LORS', '2', -0.02),
    ]  # fmt: skip


def test_a_failing_run(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.out / f'{STEM}_seed-0' / 'output.log'
    message = (
        f'{STEM}_seed-0 failed with exit status 1; all of its output: {output}'
    )
    assert folder.error('fail') == message
    assert 'lots of words\nno luck\n' in capsys.readouterr().out
    text = folder.error('fail', {'keep_going': True})
    assert text == f'1 of 2 runs failed: {STEM}_seed-0'
    assert message in capsys.readouterr().out
    assert [row['seed'] for row in folder.rows()] == ['1']
    assert (folder.out / 'results.md').is_file()
    assert 'seed-0 did not evaluate: ' in folder.error('unevaluated')


def test_two_runs_at_a_time(folder: Folder) -> None:
    folder.sweep('together together', {'parallel': 2})
    assert [row['seed'] for row in folder.rows()] == ['0', '1']


def test_other_settings_are_refused(folder: Folder) -> None:
    folder.sweep(seeds=[0])
    message = f'{STEM}_seed-0 was trained with other settings: remove its row'
    other = {'seeds': [0], 'options': {RANK: 5}}
    assert folder.error(**other).startswith(message)
    (folder.out / 'results.csv').unlink()
    assert folder.error(**other).startswith(message)
    assert folder.sweep(seeds=[0]) == 1


def test_one_sweep_per_folder(folder: Folder) -> None:
    wait = [sys.executable, '-c', 'input()']
    with _lock(folder.out) as lock:
        run = subprocess.Popen(
            wait, stdin=subprocess.PIPE, pass_fds=(lock.fileno(),)
        )
    try:  # the sweep has ended, but not its run
        assert folder.error().endswith('is at work there')
    finally:
        run.communicate(b'\n')
    assert folder.sweep() == 2


def test_dry_run(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    command = ['srun', '-n1', 'python', 'tools/train.py']
    folder.sweep(arguments={'dry_run': True}, command=command, seeds=[3])
    run = folder.out / f'{STEM}_seed-3'
    assert capsys.readouterr().out == (
        f'{run.name}: srun -n1 {sys.executable} tools/train.py {run}.py '
        f'--work-dir {run} --resume\n'
    )
    assert not folder.out.exists()


def test_outside_of_a_clone(
    folder: Folder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.path)
    config = init(Path(CONFIG).stem, folder.path, root=ROOT)
    folder.sweep(
        arguments={'dry_run': True},
        configs=[str(config)],
        command=['python', 'tools/train.py'],
        seeds=[3],
    )
    tool = capsys.readouterr().out.split()[2]
    assert tool == str(Path(lors_det.__file__).parent / '.mim/tools/train.py')


def test_table_and_plot_from_the_rows(folder: Folder) -> None:
    values = {1: [0.41, 0.43, 0.45], 2: [0.42, 0.46], 3: [0.5]}
    file = folder.path / 'rank.csv'
    pd.DataFrame(
        [
            {
                'run': f'{rank}-{seed}', 'model': 'c', 'config': 'a/c.py',
                'rank': rank, 'seed': seed, 'settings': 'x', 'commit': '1e5',
                'schedule': '1 epochs', 'parameters': 1000 * rank,
                'seconds_per_step': 0.25, 'best': 0.5, 'x/mAP': value,
                'x/mAP_s': -1 if rank < 3 else None,
            }
            for rank, column in values.items()
            for seed, value in enumerate(column)
        ]
    ).to_csv(file, index=False)  # fmt: skip
    document = folder.path / 'study.md'
    document.write_text('A\n<!-- rank -->\nold\n<!-- end of rank -->\nB\n')
    run_sweep(argparse.Namespace(sweep=str(file), document=str(document)))
    lines = file.with_suffix('.md').read_text().splitlines()
    table = [[c.strip() for c in line.split('|')[1:-1]] for line in lines[:5]]
    assert table[0] == [
        'rank', 'runs', 'x/mAP', 'x/mAP_s', 'change (95 %)', 'parameters'
    ]  # fmt: skip
    # For two pairs Student's quantile is 12.706, and 0.01 the mean's error.
    assert table[2:] == [
        ['1', '3', '0.43 ± 0.02', '-1 ± 0', '0 ± 0', '1,000'],
        ['2', '2', '0.44 ± 0.028', '-1 ± 0', '0.02 ± 0.13', '2,000'],
        ['3', '1', '0.5', '', '0.09', '3,000'],
    ]
    text = file.with_suffix('.md').read_text()
    assert document.read_text() == (
        f'A\n<!-- rank -->\n{text}<!-- end of rank -->\nB\n'
    )
    plot = file.with_suffix('.svg').read_bytes()
    write_summary(file)
    assert file.with_suffix('.svg').read_bytes() == plot
    file.write_text('a,b\n1,2\n')
    with pytest.raises(UsageError, match=r"rank.csv has no column 'run'"):
        write_summary(file)
