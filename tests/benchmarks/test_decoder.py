# SPDX-License-Identifier: Apache-2.0
"""The benchmark's command, on a decoder that runs in milliseconds."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.factories import STRIDES, decoder_config, stacks
from torch import Tensor

from benchmarks import cases, decoder, presets
from benchmarks.document import BEGIN, END, write_results
from lors_det.adamixer.mixing import RECOMPUTE, AdaptiveMixing

SMALL = [
    '--queries', '5', '--image-size', '64', '96', '--repeats', '2',
    '--rank', '2', '--param-groups', '1', '--stages', '2',
]  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shapes of the tests instead of those of the configs."""

    def base(name: str) -> dict:
        lors = decoder_config('lors', stacks=stacks('lors'))
        dense = decoder_config(num_groups=4, in_points=2, stacks={})
        found = lors if name.startswith('lors') else dense
        return copy.deepcopy({**found, 'strides': STRIDES})

    monkeypatch.setattr(cases, '_base', base)
    cases._build.cache_clear()
    yield
    cases._build.cache_clear()


@pytest.mark.parametrize(
    ('part', 'mode', 'variants'),
    [
        ('mixing', 'forward', ['reference', 'lors', 'lors-folded-all']),
        ('mixing', 'train', ['reference', 'lors-none', 'lors-kernels']),
        ('decoder', 'forward', ['dense-plain', 'dense', 'dense-g2']),
        ('decoder', 'train', ['dense', 'lors']),
    ],
)
def test_measurements(
    part: str, mode: str, variants: list[str], tmp_path: Path
) -> None:
    out = tmp_path / 'out.json'
    decoder.main(
        ['--part', part, '--mode', mode, *SMALL, '--out', str(out),
         '--variants', *variants]
    )  # fmt: skip
    data = json.loads(out.read_text())
    (result,) = data['results']
    assert list(result['variants']) == variants
    for found in result['variants'].values():
        assert len(found['seconds']) == 2
        assert found['macs'] > 0
        assert found['peak_bytes'] > 0
        assert (found['saved_bytes'] is not None) == (mode == 'train')
        assert found['error'] < 1e-4
    assert data['machine']['torch'] == torch.__version__


def test_variants_by_default() -> None:
    forward = decoder._default({'mode': 'forward'})
    train = decoder._default({'mode': 'train'})
    both = {'reference', 'lors', 'dense', 'dense-g2', 'dense-plain'}
    assert set(forward) == both | {'lors-folded', 'lors-folded-all'}
    assert set(train) > both
    assert len(train) == len(both) + len(RECOMPUTE) - 1


def test_what_is_wrong_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = AdaptiveMixing.forward

    def wrong(
        self: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
    ) -> Tensor:
        return forward(self, sampled, content, stage) * (1 + 1e-5)

    monkeypatch.setattr(AdaptiveMixing, 'forward', wrong)
    with pytest.raises(
        SystemExit,
        match=r'error: lors, mixing forward.*, in float64: output '
        r'0 differs from the float64 reference by .* not timed'
    ):  # fmt: skip
        decoder.main([*SMALL, '--thorough'])
    assert ' ms ' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments', [['--variants', 'lors'], ['--sweep', 'batch']]
)
def test_a_wrong_gradient_is_not_timed(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    forward = AdaptiveMixing.forward

    def wrong(
        self: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
    ) -> Tensor:
        return forward(self, sampled.detach(), content, stage)

    monkeypatch.setattr(AdaptiveMixing, 'forward', wrong)
    with pytest.raises(SystemExit, match=r'error: .*gradient of sampled'):
        decoder.main(['--mode', 'train', *SMALL, *arguments])


def result_of(case: cases.Case, sweep: str | None = None) -> dict[str, Any]:
    """As if it had been measured: LORS takes half of anything else."""
    found = {
        name: {
            'error': 1e-6, 'macs': 10**9, 'peak_bytes': 10**8 // half,
            'saved_bytes': 10**7 // half,
            'seconds': [0.5 / half, 0.3 / half, 0.4 / half],
        }
        for name in case.variants
        for half in [2 if name.startswith('lors') else 1]
    }  # fmt: skip
    found = {'label': case.label, 'case': asdict(case), 'variants': found}
    return {**found, 'sweep': sweep} if sweep else found


def test_render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / 'performance.md'
    marks = ''.join(
        f'{BEGIN.format(name)}stale\n{END.format(name)}between\n'
        for name in ('bar', 'sweeps')
    )
    document.write_text(f'before\n{marks}')
    bar, swept = tmp_path / 'bar.json', tmp_path / 'sweeps.json'
    measured = [c for c in presets.BAR if c.device == 'cpu']
    write_results(bar, 'bar', [result_of(c) for c in measured], [])
    points = [result_of(case, axis) for axis, case in presets.sweeps()]
    write_results(swept, 'sweeps', points, [])

    render = ['--document', str(document), '--render', str(bar), str(swept)]
    decoder.main(render)
    text = document.read_text()
    assert 'stale' not in text
    assert text.startswith('before\n')
    assert text.count('between\n') == 2
    # The dense rows compare equals, all others halves.
    verdicts = re.findall(r'\| (\d\.\d\d) +\| (yes|\*\*no\*\*) ', text)
    assert sorted(verdicts) == [
        ('0.50', '**no**'), ('0.50', '**no**'), *3 * [('0.50', 'yes')],
        *2 * [('1.00', '**no**')],
    ]  # fmt: skip
    assert text.count('not measured') == 5
    assert '](images/performance_growth.svg)' in text
    images = tmp_path / 'images'
    for name in ('performance_growth.svg', 'performance_rank.svg'):
        assert '<svg' in (images / name).read_text()
    drawn = (images / 'performance_growth.svg').read_bytes()
    decoder.main(render)
    assert document.read_text() == text
    assert (images / 'performance_growth.svg').read_bytes() == drawn


def test_sweep(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(presets.AXES, 'queries', ('queries', (3, 6)))
    out = tmp_path / 'out.json'
    decoder.main(['--sweep', 'queries', *SMALL, '--out', str(out)])
    results = json.loads(out.read_text())['results']
    assert [r['case']['queries'] for r in results] == [3, 6]
    assert {r['sweep'] for r in results} == {'queries'}
    printed = capsys.readouterr().out
    assert 'growth of peak' in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], '--batch 0: expected 1 or more'),
        (['--device', 'tpu'], '--device tpu: expected cpu, cuda'),
        (['--rank', '99'], 'mixing_kernels.rank=99: expected'),
        (['--preset', 'bar', '--batch', '3'], "--preset bar .*'batch'"),
        (['--variants', 'lors', 'lors'], '--variants: names one twice'),
        (['--variants', 'lors-graphed'], 'lors-graphed: needs --device cuda'),
        (
            ['--mode', 'train', '--variants', 'lors-folded'],
            'lors-folded: cannot run --mode train',
        ),
        (['--sweep', 'K', '--variants', 'lors'], '--sweep K needs'),
        (['--render', 'none.json'], '--render none.json: expected a file'),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    options = {'--preset', '--rank', '--render', '--batch', '--device'}
    shape = [] if options & set(arguments) else SMALL
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        decoder.main([*shape, *arguments])


def test_rendering_errors(tmp_path: Path) -> None:
    file = tmp_path / 'single.json'
    write_results(file, None, [], [])
    with pytest.raises(SystemExit, match='is not the result of a preset'):
        decoder.main(['--render', str(file)])
    write_results(file, 'bar', [], [])
    document = tmp_path / 'empty.md'
    document.touch()
    with pytest.raises(SystemExit, match='the document needs the lines'):
        decoder.main(['--render', str(file), '--document', str(document)])
