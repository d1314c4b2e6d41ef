# SPDX-License-Identifier: Apache-2.0
"""docs/method.py: equal to our modules and to records."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
from helpers import golden_decoders
from helpers.factories import decoder, positions, pyramid, randomise, stacks
from helpers.golden_files import Golden, golden_files
from torch import Tensor, nn

from docs import method
from lors_det.adamixer import AdaMixerDecoder
from lors_det.lors import MODES

SOURCE = inspect.getsource(method)
DOCUMENT = Path(method.__file__).with_suffix('.md').read_text('utf-8')
DECODERS = [f for f in golden_files() if f.stem.startswith('decoder_')]


def gradients(
    outputs: list[Tensor], model: nn.Module, inputs: list[Tensor]
) -> list[Tensor | None]:
    """Of a sum that weighs every output differently."""
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (torch.rand(x.shape, generator=generator, dtype=x.dtype) * x).sum()
        for x in outputs
    )
    wanted = [*model.parameters(), *inputs]
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


@pytest.mark.parametrize('mode', MODES)
def test_it_agrees_with_our_decoder(mode: str) -> None:
    config = stacks(mode)
    for name in ('attention', 'offsets', 'ffn', 'heads'):
        config[name] = {'mode': mode, 'rank': 2}
    model = decoder(mode, stacks=config).double()
    randomise(model)
    feats = [feat.double().requires_grad_() for feat in pyramid(2)]
    content = torch.randn(2, 5, 32).double().requires_grad_()
    inputs = (feats, content, positions(2, 5).double())

    ours = [x for stage in model(*inputs) for x in stage]
    plain = [x for stage in method.decode(model, *inputs) for x in stage]

    torch.testing.assert_close(ours, plain)
    found = gradients(ours, model, [*feats, content])
    expected = gradients(plain, model, [*feats, content])
    assert all(gradient is not None for gradient in expected)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('path', DECODERS, ids=lambda path: path.stem)
def test_it_agrees_with_the_recorded_numbers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdaMixerDecoder, 'forward', method.decode)
    golden = Golden.load(path, torch.float64)
    for check in (
        golden_decoders.decoder_outputs,
        golden_decoders.decoder_losses,
    ):
        for comparison in check(golden):
            comparison.check(golden.bounds())


def test_the_document_names_every_function() -> None:
    for node in ast.parse(SOURCE).body:
        if isinstance(node, ast.FunctionDef):
            assert f'`{node.name}`' in DOCUMENT
