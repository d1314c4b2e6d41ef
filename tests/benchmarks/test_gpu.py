# SPDX-License-Identifier: Apache-2.0
"""The GPU's command: on a processor as far as that goes, whole on a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import golden_checks

from benchmarks import gpu, gpu_checks, gpu_speed
from benchmarks.gpu import PARTS, Part
from benchmarks.gpu_checks import Context, Row
from benchmarks.gpu_speed import Traffic, kernels_of
from lors_det.adamixer import AdaMixerDecoder
from lors_det.adamixer.mixing import AdaptiveMixing

ROOT = Path(__file__).parents[2]
#: On a processor the others would do the same again: batches are small there,
#: and tests/tools trains by the launcher, in mixed precision.
ON_CPU = [
    part
    for part in PARTS
    if part.name not in ('Launcher', 'Mixed precision with a scaler')
    and ('batch 16' not in part.name or part.name.startswith('Kernels'))
]


def context(device: str = 'cpu') -> Context:
    return Context(device, time.monotonic() + 600)


@pytest.fixture
def _few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module and its gradients; tests/test_golden.py compares the rest."""
    found = [
        (path, check)
        for path, check in golden_checks.checks()
        if path.stem == 'mixing_lors'
    ]
    monkeypatch.setattr(golden_checks, 'checks', lambda: found)


@pytest.mark.slow
@pytest.mark.usefixtures('small_decoders', '_few_files')
@pytest.mark.parametrize('part', ON_CPU, ids=lambda part: part.name)
def test_on_a_processor(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (found,) = gpu.run([part], context(), tmp_path)
    results = {row.get('result') for row in found['rows']}
    if part.needs_gpu:
        assert results == {'not run: no CUDA device'}
    elif part.has_to_pass:
        assert results == {'passed'}
    elif part.name.startswith('Kernels'):
        assert all(float(row['time / floor']) > 0 for row in found['rows'])
    else:
        assert found['rows'][0]['variant'] == 'dense'
        assert all(min(row['seconds']) > 0 for row in found['rows'])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('part', PARTS, ids=lambda part: part.name)
def test_on_a_gpu(
    part: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (found,) = gpu.run([part], context('cuda'), tmp_path)
    assert {x.get('result', 'passed') for x in found['rows']} == {'passed'}


@pytest.mark.usefixtures('_few_files')
def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient that lacks a part, in a forward that is right."""
    forward = AdaptiveMixing.forward
    monkeypatch.setattr(
        AdaptiveMixing,
        'forward',
        lambda self, sampled, content, stage: forward(
            self, (sampled + sampled.detach()) / 2, content, stage
        ),
    )
    for row in gpu_checks.golden(context()):
        assert row['result'] == 'failed'
        assert row['found'].startswith('gradients beyond')


@pytest.mark.parametrize('is_stale', [False, True])
def test_a_graph_reads_its_inputs_anew(
    is_stale: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the graph; one that ignores new images is found."""
    monkeypatch.chdir(ROOT)

    def graphed(run: Any) -> Any:
        recorded = run()
        return lambda: recorded if is_stale else run()

    monkeypatch.setattr(gpu_checks, 'graphed', graphed)
    (row,) = gpu_checks.graph(context())
    assert row['result'] == ('failed' if is_stale else 'passed'), row


@pytest.mark.usefixtures('small_decoders')
def test_torch_refuses_to_wait_for_the_decoder_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in for torch's mode: set around one call, and taken back."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    forward, seen = AdaMixerDecoder.forward, list[str]()

    def waits(self: AdaMixerDecoder, *args: Any) -> Any:
        seen.append(modes[-1] if modes else 'default')
        if seen[-1] == 'error':
            raise RuntimeError('called a synchronizing CUDA operation')
        return forward(self, *args)

    monkeypatch.setattr(AdaMixerDecoder, 'forward', waits)
    rows = list(gpu_checks.synchronisation(context()))
    assert {row['result'] for row in rows} == {'failed'}
    assert seen == ['default', 'error'] * len(rows)
    assert modes == ['error', 'default'] * len(rows)


def fails(context: Context) -> Iterator[Row]:
    yield {'what': 'first', 'result': 'passed', 'found': ''}
    raise RuntimeError('out of memory')


def passes(context: Context) -> Iterator[Row]:
    yield gpu_checks.row('second', lambda: 'equal')


@pytest.mark.parametrize('has_to_pass', [False, True])
def test_the_command(
    has_to_pass: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It goes on after an error, and leaves out what does not fit."""
    parts = (
        Part('Broken', fails, 1, has_to_pass),
        Part('Whole', passes, 1, True),
        Part('Long', passes, 600, True),
        Part('Other', passes, 1, True, True),
    )
    monkeypatch.setattr(gpu, 'PARTS', parts)
    command = ['--device', 'cpu', '--minutes', '1', '--out', str(tmp_path)]
    if has_to_pass:
        with pytest.raises(SystemExit, match=r'error: failed: Broken$'):
            gpu.main(command)
    else:
        gpu.main(command)
    data = json.loads((tmp_path / 'gpu.json').read_text())
    found = [[r['result'] for r in part['rows']] for part in data['parts']]
    assert found[0] == ['passed', 'failed']
    assert found[1] == ['passed']
    assert found[2][0].startswith('left out: ')
    assert found[3] == ['not run: no CUDA device']
    text = (tmp_path / 'gpu.md').read_text()
    assert 'RuntimeError' not in text
    assert 'out of memory' in text
    assert 'no measurement' in text
    assert torch.__version__ in data['machine']
    assert text in capsys.readouterr().out


def test_results_are_written_after_each_part(tmp_path: Path) -> None:
    def stops(context: Context) -> Iterator[Row]:
        raise KeyboardInterrupt
        yield

    parts = Part('Whole', passes, 1), Part('Stopped', stops, 1)
    with pytest.raises(KeyboardInterrupt):
        gpu.run(parts, context(), tmp_path)
    (part,) = json.loads((tmp_path / 'gpu.json').read_text())['parts']
    assert part['name'] == 'Whole'


def test_no_such_device(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match='error: --device tpu: is not there'):
        gpu.main(['--device', 'tpu', '--out', str(tmp_path)])


def moved(call: Any) -> int:
    with Traffic() as traffic:
        call()
    return sum(number for _, number in traffic.operators)


def test_bytes() -> None:
    a, b = torch.rand(3, 4), torch.rand(4, 5)
    assert moved(lambda: a @ b) == 4 * (12 + 20 + 15)
    assert moved(lambda: b.copy_(torch.ones(()))) == 4 * (20 + 1) + 4
    wide = torch.rand(3, 1).expand(3, 4)
    assert moved(lambda: a + wide) == 4 * (12 + 3 + 12)
    # Of a table of 100 rows no more is read than the six that are asked for.
    index = torch.arange(6).view(2, 3)
    weights = torch.rand(2, 3)
    table = torch.rand(100, 8)
    number = moved(
        lambda: F.embedding_bag(
            index, table, per_sample_weights=weights, mode='sum'
        )
    )
    assert 4 * 6 * 8 < number < 4 * 100 * 8


def test_kernels_of_a_label() -> None:
    """Those of the operators below it too; its own shadow is none."""

    def event(kernels: dict[str, float], *children: Any) -> Any:
        return SimpleNamespace(
            kernels=[
                SimpleNamespace(name=name, duration=us)
                for name, us in kernels.items()
            ],
            cpu_children=children,
        )

    label = event(
        {f'{gpu_speed.LABEL}3': 9.0},
        event({'gemm': 5.0}, event({'memset': 1.0})),
    )
    assert kernels_of(label) == [('gemm', 5.0), ('memset', 1.0)]
