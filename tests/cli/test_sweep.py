# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lors_det.cli.sweep import process
from lors_det.cli.sweep.description import Sweep, read_sweep
from lors_det.cli.sweep.plan import build_runs, list_runs
from lors_det.cli.sweep.process import (
    Ended,
    execute,
    last_line,
    lock_folder,
)
from lors_det.cli.sweep.results import (
    mean_and_std,
    plot_summary,
    read_log,
    summary_text,
)
from lors_det.cli.sweep.run import run_sweep
from lors_det.errors import UsageError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / 'configs/demo/lors-adamixer_r18_coco-tiny.py')
STEM = 'lors-adamixer_r18_coco-tiny'
RANK = 'model.decoder.stacks.mixing_kernels.rank'


def described(tmp_path: Path, **changes: object) -> str:
    """A sweep file with one config and two seeds, changed."""
    path = tmp_path / 'sweep.yml'
    content = {'configs': [CONFIG], 'seeds': [0, 1], **changes}
    path.write_text(yaml.safe_dump(content))
    return str(path)


def ap(value: float) -> dict[str, float]:
    """A validation's record."""
    suffixes = ('', '_50', '_75', '_s', '_m', '_l')
    return {f'x/bbox_mAP{suffix}': value for suffix in suffixes}


class FakeTraining:
    """Stands in for tools/train.py: leaves what it would leave.

    `plan` has one word per start: what is to happen.
    """

    def __init__(self, *plan: str) -> None:
        self.plan = list(plan)
        self.commands: list[list[str]] = []

    def __call__(
        self, command: Sequence[str], output: Path, lock: int
    ) -> Ended:
        self.commands.append(list(command))
        work_dir = output.parent
        what = self.plan.pop(0) if self.plan else 'finish'
        output.write_text('lots of words\nerror: no luck\n')
        if what == 'fail':
            return Ended(1, 0.0)
        start = len(list(work_dir.glob('2026*')))
        logs = work_dir / f'2026_{start}' / 'vis_data'
        logs.mkdir(parents=True)
        if what == 'nothing left':
            return Ended(0, 11.0)  # mmengine logs nothing then
        records: list[dict[str, float]] = [
            {'iter': 2, 'time': 0.5, 'memory': 7}
        ]
        for step in (1, 2):
            (work_dir / f'iter_{step}.pth').touch()
        (work_dir / 'last_checkpoint').write_text('/moved/iter_2.pth')
        if what == 'killed':
            records.insert(0, ap(0.7))  # not the last validation
        if what == 'finish':
            records.append({**ap(0.1 * len(self.commands)), 'step': 0})
        (logs / 'scalars.json').write_text(
            '\n'.join(json.dumps(record) for record in records)
        )
        if what == 'killed':
            raise KeyboardInterrupt
        return Ended(0, 11.0)


def sweep(
    file: str, folder: Path, fake: FakeTraining, **arguments: bool
) -> None:
    """Run a sweep with faked trainings."""
    args = argparse.Namespace(
        sweep=file,
        work_dir=str(folder),
        **{'dry_run': False, 'keep_going': False, **arguments},
    )
    run_sweep(args, ROOT / 'tools', fake)


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def names(**changes: object) -> list[str]:
    return [
        run.name
        for run in list_runs(
            replace(Sweep(configs=[CONFIG], seeds=[0]), **changes)
        )
    ]


def test_names() -> None:
    assert names(seeds=[0, 7]) == [f'{STEM}_seed-0', f'{STEM}_seed-7']
    assert names(grid={RANK: [2, 4], 'a.lr': [0.1]}) == [
        f'{STEM}_rank-2_lr-0.1_seed-0',
        f'{STEM}_rank-4_lr-0.1_seed-0',
    ]
    # Endings as long as it takes to tell them apart.
    assert names(grid={'a.x.rank': [[1, 2]], 'a.y.rank': [None]}) == [
        f'{STEM}_x-rank-1,2_y-rank-None_seed-0'
    ]
    assert names(configs=['a/x.py', 'b/x.py']) == ['a-x_seed-0', 'b-x_seed-0']
    # More seeds and values change no name.
    assert set(names(grid={'k': [1]})) < set(
        names(grid={'k': [1, 2]}, seeds=[0, 1])
    )
    # Values that look alike, and values that no folder can be named by.
    values = [2, [2], [[2]], '2,', 'a/b', 'a-b', 'a b', True, 'x' * 300]
    many = names(grid={'k': values})
    assert len(set(many)) == len(values)
    assert all(re.fullmatch(r'[\w.,+-]{1,200}', name) for name in many)
    with pytest.raises(UsageError, match=r'configs: .* is there twice'):
        names(configs=['a b/x.py', 'a-b/x.py', 'c/x.py'])


def test_reading(tmp_path: Path) -> None:
    found = read_sweep(
        described(
            tmp_path,
            grid={RANK: [2, [1, 2, 3]], 'optim_wrapper.lr': ['4e-4']},
            options={'model.backbone.init_cfg': None},
            arguments=['--amp'],
            command=['srun', '-n1'],
            gpus=8,
        )
    )
    assert found.grid == {
        RANK: [2, [1, 2, 3]],
        'optim_wrapper.lr': [0.0004],  # for YAML, 4e-4 is a string
    }
    assert found.options == {'model.backbone.init_cfg': None}
    assert found.arguments == ['--amp']
    assert (found.command, found.gpus) == (['srun', '-n1'], 8)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'config': []}, "config: no key of a sweep; known are ['configs', "),
        ({'configs': []}, 'configs=[]: expected a list of files, at least'),
        ({'configs': [CONFIG] * 2}, f'configs: {CONFIG} is there twice'),
        ({'seeds': []}, 'seeds=[]: expected a list of integers, at least'),
        ({'seeds': ['a']}, "seeds=['a']: expected a list of integers"),
        ({'seeds': [True]}, 'seeds=[True]: expected a list of integers'),
        ({'seeds': [1, 1]}, 'seeds: 1 is there twice'),
        ({'seeds': 3}, 'seeds=3: expected a list of integers'),
        ({'grid': {RANK: 4}}, f'grid.{RANK}=4: expected a list of values'),
        ({'grid': {RANK: []}}, f'grid.{RANK}=[]: expected a list of values'),
        ({'grid': {RANK: [4, 4]}}, f'grid.{RANK}: 4 is there twice'),
        ({'grid': [RANK]}, f"grid=['{RANK}']: expected a mapping"),
        (
            {'grid': {RANK: [4]}, 'options': {RANK: 8}},
            f'options.{RANK}: is in the grid already',
        ),
        (
            {'options': {'model': {'a': 1}}},
            "options.model={'a': 1}: --cfg-options cannot express this",
        ),
        (
            {'grid': {'a.b': ['x y']}},
            "grid.a.b='x y': --cfg-options cannot express this value",
        ),
        ({'options': {'a': '(b,c'}}, 'options.a=(b,c: Imbalanced brackets'),
        (
            {'grid': {'randomness.seed': [1]}},
            'randomness.seed: give the seeds under seeds',
        ),
        ({'gpus': 0}, 'gpus=0: expected an integer above 0'),
        (
            {'arguments': ['--work-dir=x']},
            'arguments: the sweep itself sets --work-dir=x',
        ),
        ({'command': 'srun'}, "command='srun': expected a list of strings"),
    ],
)
def test_a_wrong_file(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        read_sweep(described(tmp_path, **changes))
    assert str(error.value).startswith(message)
    assert '\n' not in str(error.value)


def test_no_sweep_file(tmp_path: Path) -> None:
    path = tmp_path / 'sweep.yml'
    with pytest.raises(UsageError, match=r'^SWEEP: .* does not exist$'):
        read_sweep(str(path))
    path.write_text('configs: [a\nseeds: ]')
    with pytest.raises(UsageError, match=r'^SWEEP: .* is no YAML: .*line 2'):
        read_sweep(str(path))
    path.write_text('- configs')
    with pytest.raises(UsageError, match=r"keys out of .*, got \['configs'\]"):
        read_sweep(str(path))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'configs': ['no.py']}, 'CONFIG: no.py does not exist'),
        (
            {'grid': {'model.decoder.num_stage': [1]}},
            f'grid.model.decoder.num_stage: {CONFIG} sets no '
            "model.decoder.num_stage; model.decoder has ['type', ",
        ),
        (
            {'grid': {'modle.neck': [1]}},
            f'grid.modle.neck: {CONFIG} sets no modle.neck; the config has [',
        ),
        (
            {'options': {'model.decoder.num_stages.x': 1}},
            f'options.model.decoder.num_stages.x: {CONFIG} sets no '
            'model.decoder.num_stages.x; model.decoder.num_stages is 3;',
        ),
        (
            {'grid': {'param_scheduler.2.begin': [1]}},
            f'grid.param_scheduler.2.begin: {CONFIG} sets no '
            "param_scheduler.2.begin; param_scheduler has ['0', '1'];",
        ),
        (
            {'grid': {'model.decoder.stacks.fnn.mode': ['lors']}},
            f'grid.model.decoder.stacks.fnn.mode: {CONFIG} sets no '
            'model.decoder.stacks.fnn.mode; model.decoder.stacks has '
            "['attention', ",
        ),
        (
            {'grid': {'model.decoder.stacks.ffn.mod': ['lors']}},
            f'grid.model.decoder.stacks.ffn.mod: {CONFIG} sets no '
            'model.decoder.stacks.ffn.mod; model.decoder.stacks.ffn has '
            "['mode', 'rank', 'num_param_groups']",
        ),
        (
            {'grid': {'model.decoder.stacks.ffn.mode': ['dense', 'lor']}},
            f'{CONFIG} with model.decoder.stacks.ffn.mode=lor does not '
            'build: ValueError: ',
        ),
        (
            {'options': {'train_dataloader.dataset.ann_file': 'no.json'}},
            'train_dataloader.dataset.ann_file: demo/coco_tiny/no.json does '
            'not exist; get COCO 2017 with',
        ),
        (
            {'options': {'val_cfg': None}},
            f'{CONFIG} with val_cfg=None: val_cfg is not set, and without',
        ),
    ],
)
def test_a_wrong_config_is_found_before_training(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    fake = FakeTraining()
    with pytest.raises(UsageError) as error:
        sweep(described(tmp_path, **changes), tmp_path / 'out', fake)
    assert str(error.value).startswith(message)
    assert '\n' not in str(error.value)
    assert not fake.commands
    assert not (tmp_path / 'out').exists()


def test_building() -> None:
    """Fields of stacks may be new; counts and settings are those changed."""
    mode = 'model.decoder.stacks.ffn.mode'
    description = Sweep(
        configs=[CONFIG],
        seeds=[0, 5],
        grid={mode: ['dense', 'shared']},
        options={'param_scheduler.0.end': 3},
    )
    runs = build_runs(list_runs(description), description)
    dense, _, shared, last = runs
    assert dense.decoder_parameters is not None
    assert shared.decoder_parameters is not None
    # Of 3 stages' two matrices of 128 x 512, one stage's remain.
    saved = 2 * 2 * 128 * 512
    assert dense.decoder_parameters - shared.decoder_parameters == saved
    assert dense.parameters - shared.parameters == saved
    assert last.settings[mode] == 'shared'
    assert last.settings['randomness.seed'] == 5
    assert last.settings['param_scheduler'][0]['end'] == 3


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = described(
        tmp_path, grid={RANK: [2]}, gpus=2, command=['srun', '-n1']
    )
    sweep(file, tmp_path / 'out', FakeTraining(), dry_run=True)
    first, command = capsys.readouterr().out.splitlines()[:2]
    name = f'{STEM}_rank-2_seed-0'
    assert first == f'{name}: not started'
    assert command.strip() == (
        f'srun -n1 {ROOT}/tools/dist_train.sh {CONFIG} 2 '
        f'--work-dir {tmp_path}/out/{name} --overwrite '
        f'--cfg-options {RANK}=2 randomness.seed=0'
    )
    assert not (tmp_path / 'out').exists()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / 'results.csv').open() as file:
        return list(csv.DictReader(file))


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    file = described(tmp_path, grid={RANK: [2, 4]})
    out = tmp_path / 'out'
    fake = FakeTraining('finish', 'killed')
    with pytest.raises(KeyboardInterrupt):
        sweep(file, out, fake)
    assert len(rows(out)) == 1  # what it had is kept
    fake = FakeTraining()
    sweep(file, out, fake)
    assert len(fake.commands) == 3
    second = out / f'{STEM}_rank-2_seed-1'
    assert f'--resume {second}/iter_2.pth' in ' '.join(fake.commands[0])
    assert '--overwrite' in fake.commands[1]
    assert '--resume' not in fake.commands[1]
    found = rows(out)
    assert [(row[RANK], row['seed']) for row in found] == [
        ('2', '0'), ('2', '1'), ('4', '0'), ('4', '1')
    ]  # fmt: skip
    assert found[1]['bbox_mAP_s'] == '0.1'
    assert found[1]['train_seconds'] == '1.0'
    assert found[1]['memory_mib'] == '7'
    assert found[1]['memory_of'] == 'gpu'
    assert re.fullmatch(r'[0-9a-f]{40}(\+dirty)?|', found[1]['commit'])
    assert int(found[0]['parameters']) > int(found[0]['decoder_parameters'])
    assert (out / 'summary.md').read_text().count(f'| {CONFIG} |') == 2
    for ending in ('png', 'svg'):
        assert (out / f'summary.{ending}').stat().st_size > 1000
    # Once more: nothing to do.
    fake = FakeTraining()
    sweep(file, out, fake)
    assert not fake.commands


def test_killed_between_the_last_checkpoint_and_its_validation(
    tmp_path: Path,
) -> None:
    file = described(tmp_path, seeds=[0])
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        sweep(file, out, FakeTraining('killed'))
    fake = FakeTraining('nothing left', 'finish')
    sweep(file, out, fake)
    resumed = [' '.join(command) for command in fake.commands]
    assert 'iter_2.pth' in resumed[0]
    assert 'iter_1.pth' in resumed[1]
    assert rows(out)[0]['bbox_mAP'] == '0.2'


def test_a_failing_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file, out = described(tmp_path), tmp_path / 'out'
    message = (
        f'{STEM}_seed-0 failed (exit status 1): error: no luck (all of it: '
        f'{out}/{STEM}_seed-0/output.log)'
    )
    fake = FakeTraining('fail')
    with pytest.raises(UsageError) as error:
        sweep(file, out, fake)
    assert str(error.value) == message
    assert len(fake.commands) == 1
    fake = FakeTraining('fail')
    with pytest.raises(UsageError) as error:
        sweep(file, out, fake, keep_going=True)
    assert str(error.value) == f'1 of 2 runs failed: {STEM}_seed-0'
    assert message in capsys.readouterr().out
    assert [row['seed'] for row in rows(out)] == ['1']
    assert '1 of 2 runs are finished' in (out / 'summary.md').read_text()


def test_other_settings_under_the_same_name(tmp_path: Path) -> None:
    out = tmp_path / 'out'
    sweep(described(tmp_path, seeds=[0]), out, FakeTraining())
    changed = described(tmp_path, seeds=[0], options={RANK: 5})
    folder = out / f'{STEM}_seed-0'
    with pytest.raises(UsageError) as error:
        sweep(changed, out, FakeTraining())
    assert str(error.value) == (
        f'{folder}/result.json: trained with other settings: {RANK} was 8, '
        'is 5; name another --work-dir, or remove the folder to train anew'
    )
    # The same for one that is not finished.
    (folder / 'result.json').unlink()
    with pytest.raises(UsageError, match=r'run.json: trained with other'):
        sweep(changed, out, FakeTraining())
    (folder / 'run.json').write_text('{')
    with pytest.raises(UsageError, match=r'run.json is no JSON'):
        sweep(changed, out, FakeTraining())
    (folder / 'run.json').unlink()
    with pytest.raises(UsageError, match=r'holds checkpoints, but no run'):
        sweep(changed, out, FakeTraining())


def test_one_sweep_per_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, 'LOCK_PATIENCE', 0)
    with lock_folder(tmp_path / 'out'):
        with pytest.raises(UsageError, match=r'is at work there$'):
            sweep(described(tmp_path), tmp_path / 'out', FakeTraining())
    sweep(described(tmp_path), tmp_path / 'out', FakeTraining())


def test_executing(tmp_path: Path) -> None:
    output = tmp_path / 'output.log'
    code = 'x = bytearray(2**26); print("ValueError: no"); exit(3)'
    with lock_folder(tmp_path) as lock:
        ended = execute([sys.executable, '-c', code], output, lock)
    assert ended.code == 3
    assert 64 < ended.peak_mib < 10_000
    assert last_line(output) == 'ValueError: no'
    output.write_text('error: one\nruntime.Error: two\n=====\nend\n')
    assert last_line(output) == 'runtime.Error: two'
    output.write_text('')
    assert last_line(output) == 'it printed nothing'


@pytest.mark.parametrize(
    'number',
    # Only Linux tells a child that its parent was killed.
    [signal.SIGTERM, *[signal.SIGKILL] * (sys.platform == 'linux')],
)
def test_a_run_ends_with_its_sweep(
    number: signal.Signals, tmp_path: Path
) -> None:
    output = tmp_path / 'output.log'
    script = (
        'import sys\n'
        'from pathlib import Path\n'
        'from lors_det.cli.sweep.process import *\n'
        'child = "import time; print(1, flush=True); time.sleep(60)"\n'
        'with lock_folder(Path(sys.argv[1]).parent) as lock:\n'
        '    with sigterm_interrupts():\n'
        '        execute([sys.executable, "-c", child],\n'
        '                Path(sys.argv[1]), lock)\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, str(output)], stderr=subprocess.DEVNULL
    )
    while not output.is_file() or not output.read_text().strip():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) != 0
    # The lock is free when the run, which inherited it, is gone.
    with lock_folder(tmp_path):
        pass


def test_mean_and_std() -> None:
    assert mean_and_std([1, 2, 6]) == (3, pytest.approx(7**0.5))
    assert mean_and_std([1, None]) == (1, None)
    assert mean_and_std([None]) == (None, None)


def row(rank: int, value: float | None) -> dict[str, object]:
    scores = {name.split('/')[1]: v for name, v in ap(value or 0).items()}
    return {
        **scores, 'bbox_mAP': value, 'bbox_mAP_s': -1.0, 'config': 'a/c.py',
        'rank': rank, 'decoder_parameters': 1_500_000, 'parameters': 2e6,
        'train_seconds': 12.4, 'memory_mib': 100 * rank,
    }  # fmt: skip


def test_summary() -> None:
    table = summary_text(
        [row(1, 0.41), row(2, 0.5), row(1, 0.43), row(3, None)], ['rank'], 6
    ).splitlines()
    assert table[2].startswith('4 of 6 runs are finished.')
    header, _, first, second, third = table[6:]
    assert header == (
        '| config | rank | runs | AP | AP_50 | AP_75 | AP_s | AP_m | AP_l | '
        'decoder (M) | model (M) | training (s) | memory (MiB) |'
    )
    score = '42.00 ± 1.41'
    assert first == (
        f'| a/c.py | 1 | 2 | {score} | {score} | {score} |  | {score} | '
        f'{score} | 1.50 | 2.00 | 12 ± 0 | 100 |'
    )
    assert second.startswith('| a/c.py | 2 | 1 | 50.00 | 50.00 |')
    assert third.startswith('| a/c.py | 3 | 1 |  | 0.00 |')


def test_plot(tmp_path: Path) -> None:
    runs = [row(1, 0.41), row(1, 0.43), row(2, 0.5), row(3, None)]
    png, svg = plot_summary(runs, ['rank'], tmp_path / 'summary')
    assert png.read_bytes().startswith(b'\x89PNG')
    text = svg.read_text()
    assert 'c, rank=1' in text
    assert 'c, rank=2' in text
    assert 'c, rank=3' not in text
    plot_summary(runs, ['rank'], tmp_path / 'again')
    assert (tmp_path / 'again.svg').read_text() == text
    plot_summary([row(3, None)], ['rank'], tmp_path / 'none')
    assert 'no run with an AP' in (tmp_path / 'none.svg').read_text()


def test_logs_of_an_interrupted_run(tmp_path: Path) -> None:
    """Steps count once, the last validation counts, half a line does not."""
    lines = {
        '20260101_000000': [
            {'iter': 10, 'time': 2.0, 'memory': 5},
            {'iter': 20, 'time': 3.0, 'memory': 9},
            {**ap(0.3), 'step': 1},
        ],
        '20260101_000001': [
            {'iter': 20, 'time': 1.0, 'memory': 8},
            {**ap(0.4), 'step': 1},
            {**ap(-1), 'bbox_mAP': 0.5, 'step': 2},
        ],
    }
    for start, records in lines.items():
        file = tmp_path / start / 'vis_data' / 'scalars.json'
        file.parent.mkdir(parents=True)
        file.write_text('\n'.join(map(json.dumps, records)) + '\n{"it')
    log = read_log(tmp_path)
    assert log.validated
    assert log.seconds == 30
    assert log.gpu_mib == 9
    assert log.average_precision['bbox_mAP_75'] == -1
    nothing = read_log(tmp_path / 'nothing')
    assert not nothing.validated
    assert nothing.seconds is nothing.gpu_mib is None
    assert set(nothing.average_precision.values()) == {None}
