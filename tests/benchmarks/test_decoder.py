# SPDX-License-Identifier: Apache-2.0
"""The benchmark's command, on a decoder that runs in milliseconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import cases, decoder
from benchmarks.document import BEGIN, END, write_results
from lors_det.adamixer.mixing import AdaptiveMixing

SMALL = [
    '--queries', '5', '--image-size', '64', '96', '--rounds', '2',
    '--rank', '2', '--param-groups', '1', '--stages', '2',
]  # fmt: skip


pytestmark = pytest.mark.usefixtures('small_decoders')


@pytest.mark.parametrize(
    ('part', 'mode', 'dtype', 'variants'),
    [
        ('mixing', 'forward', 'float32', ['dense', 'lors', 'lors-folded-all']),
        ('mixing', 'train', 'float32', ['reference', 'lors', 'lors-g4']),
        ('mixing', 'train', 'bfloat16', ['lors', 'lors-cp']),
        ('decoder', 'forward', 'bfloat16', ['dense-plain', 'dense-g2']),
        ('decoder', 'train', 'float32', ['dense', 'lors-cp']),
    ],
)
def test_measurements(
    part: str, mode: str, dtype: str, variants: list[str], tmp_path: Path
) -> None:
    out = tmp_path / 'out.json'
    decoder.main(
        ['--part', part, '--mode', mode, '--dtype', dtype, *SMALL,
         '--out', str(out), '--variants', *variants]
    )  # fmt: skip
    data = json.loads(out.read_text())
    (result,) = data['results']
    assert list(result['variants']) == variants
    for found in result['variants'].values():
        assert len(found['seconds']) == 2
        assert found['macs'] > 0
        assert found['peak_bytes'] > 0
        assert found['error'] < (1e-4 if dtype == 'float32' else 0.1)
    assert torch.__version__ in data['machine']


@pytest.mark.parametrize(
    ('mode', 'message'),
    [
        ('forward', 'lors in float64: output 0 differs .* not timed'),
        ('train', 'lors in float64: gradient of sampled.0 differs'),
    ],
)
def test_what_is_wrong_is_not_timed(
    mode: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forward = AdaptiveMixing.forward

    def wrong(
        self: AdaptiveMixing, sampled: Tensor, content: Tensor, stage: int
    ) -> Tensor:
        if mode == 'train':  # a part of the gradient is missing
            sampled = (sampled + sampled.detach()) / 2
            return forward(self, sampled, content, stage)
        return forward(self, sampled, content, stage) * (1 + 1e-5)

    monkeypatch.setattr(AdaptiveMixing, 'forward', wrong)
    with pytest.raises(SystemExit, match=f'error: {message}'):
        decoder.main(['--mode', mode, *SMALL, '--variants', 'lors'])
    assert ' ms ' not in capsys.readouterr().out


def test_render(tmp_path: Path) -> None:
    """Ratios are those of the rounds, against the first variant."""
    document, out = tmp_path / 'performance.md', tmp_path / 'out.json'
    document.write_text(decoder.DOCUMENT.read_text())
    seconds = {'dense': [0.5, 0.3, 0.4], 'lors': [0.25, 0.15, 0.2]}
    found = {
        name: {'error': 1e-6, 'macs': 9, 'peak_bytes': 8, 'seconds': each}
        for name, each in seconds.items()
    }
    write_results(out, [{'label': 'mixing', 'variants': found}])
    command = ['--document', str(document), '--render', str(out)]
    decoder.main(command)
    text = document.read_text()
    block = text.split(BEGIN)[1].split(END)[0]
    rows = re.findall(r'\| (\w+) +\| (\d\.\d\d) .*\n', block)
    assert rows == [('dense', '1.00'), ('lors', '0.50')]
    decoder.main(command)
    assert document.read_text() == text


def test_compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / 'compare.json'
    case = cases.Case(
        'mixing', 'forward', ('dense', 'lors'), stages=2, rank=2, queries=3,
        num_param_groups=1,
    )  # fmt: skip
    monkeypatch.setattr(decoder, 'COMPARED', [case])
    decoder.main(['--compare', '--rounds', '1', '--out', str(out)])
    (result,) = json.loads(out.read_text())['results']
    assert list(result['variants']) == ['dense', 'lors']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], '--batch 0: expected 1 or more'),
        (['--device', 'tpu'], '--device tpu: is not there'),
        (['--rank', '99'], 'mixing_kernels.rank=99: expected'),
        (['--compare', '--batch', '3'], r"--compare: has its own \['batch'"),
        (['--variants', 'lors', 'lors'], '--variants: names one twice'),
        (['--variants', 'lors-graphed'], 'lors-graphed: needs --device cuda'),
        (
            ['--mode', 'train', '--variants', 'lors-folded'],
            'lors-folded: cannot run --mode train',
        ),
        (['--render', 'none.json'], '--render none.json: expected a file'),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    own = {'--compare', '--rank', '--render', '--batch', '--device'}
    shape = [] if own & set(arguments) else SMALL
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        decoder.main([*shape, *arguments])


def test_a_document_without_marks(tmp_path: Path) -> None:
    file, document = tmp_path / 'own.json', tmp_path / 'empty.md'
    document.write_text('no marks')
    write_results(file, [])
    with pytest.raises(SystemExit, match=r'error: .*expected the lines'):
        decoder.main(['--render', str(file), '--document', str(document)])
