# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.factories import build, decoder, decoder_config, detector_config

from lors_det.analysis.costs import ModelReport, flop_counter, report
from lors_det.analysis.plots import plot_parts
from lors_det.analysis.tables import (
    ascii_table,
    format_reports,
    markdown_table,
)
from lors_det.errors import UsageError


@pytest.fixture(scope='module')
def lors() -> ModelReport:
    return report(detector_config('lors'))


def test_parameters_add_up(lors: ModelReport) -> None:
    expected = sum(p.numel() for p in decoder('lors').parameters())
    assert lors.parts['decoder'].total == expected
    steps = ('attention', 'sampling', 'mixing', 'ffn', 'heads')
    for kind in ('shared', 'private', 'dense', 'other'):
        inside = [getattr(lors.parts[f'decoder.{s}'], kind) for s in steps]
        assert sum(inside) == getattr(lors.parts['decoder'], kind)
    inside = [lors.gmacs[f'decoder.{s}'] for s in steps]
    assert sum(inside) == pytest.approx(lors.gmacs['decoder'])
    whole = sum(
        lors.parts[name].total
        for name in ('backbone', 'neck', 'queries', 'decoder')
    )
    assert lors.parts['model'].total == whole
    dense = sum(p.numel() for p in decoder('dense').parameters())
    assert lors.parts['decoder'].dense_total == dense


def test_bytes(lors: ModelReport) -> None:
    model = build(detector_config('lors'))
    state = model.state_dict().values()
    assert lors.checkpoint_bytes == sum(x.nbytes for x in state)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert lors.allreduce_bytes == sum(p.nbytes for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(
        slot[name].nbytes
        for slot in optimizer.state.values()
        for name in ('exp_avg', 'exp_avg_sq')
    )
    weights = sum(p.nbytes for p in model.parameters())
    assert lors.training_bytes == weights + lors.allreduce_bytes + moments


def test_multiply_adds_of_dense_mixing() -> None:
    """Against the closed form; three stages, seven queries."""
    gmacs = report(detector_config('dense')).gmacs
    queries, stages, c, groups, p_in, p_out = 7, 3, 32, 2, 4, 6
    width = c // groups
    each = queries * stages
    sizes = width * width + p_out * p_in
    generators = gmacs['decoder.mixing.channel']
    generators += gmacs['decoder.mixing.spatial']
    assert generators == pytest.approx(each * c * groups * sizes / 1e9)
    out_proj = gmacs['decoder.mixing.out_proj']
    assert out_proj == pytest.approx(each * c * p_out * c / 1e9)
    products = gmacs['decoder.mixing'] - generators - out_proj
    assert products == pytest.approx(
        each * groups * (p_in * width * width + p_out * p_in * width) / 1e9
    )
    assert gmacs['decoder.ffn'] == pytest.approx(each * 2 * c * 16 / 1e9)


def test_a_product_that_is_added_in_place_is_counted() -> None:
    with flop_counter() as counter:
        sums = torch.zeros(5, 2, 4)
        sums.baddbmm_(torch.ones(5, 2, 3), torch.ones(5, 3, 4))
    assert counter.get_total_flops() == 2 * 5 * 2 * 3 * 4


def test_deformable_convolution_is_counted() -> None:
    plain = detector_config('lors')
    plain.backbone.depth = 50
    plain.neck.in_channels = [32, 64, 128, 256]
    deformable = copy.deepcopy(plain)
    deformable.backbone.update(
        dcn={'type': 'DCN', 'deform_groups': 1, 'fallback_on_stride': False},
        stage_with_dcn=(False, True, True, True),
    )
    less, more = (report(c).gmacs['backbone'] for c in (plain, deformable))
    assert more > less  # the same products, and the offsets' convolutions


def test_text(lors: ModelReport) -> None:
    dense = report(detector_config('dense'))
    text = format_reports({'one': dense, 'two': lors}, ascii_table)
    count = lors.parts['decoder'].total
    assert f'| {count:,} ' in text
    assert f'{count / 1e6:.1f} M' in text
    change = 100 * (count / dense.parts['decoder'].total - 1)
    assert f'{change:+.1f} %' in text
    markdown = format_reports({'one': dense, 'two': lors}, markdown_table)
    assert markdown.count('|--') >= 3


def test_plot(lors: ModelReport, tmp_path: Path) -> None:
    files = plot_parts({'lors': lors}, tmp_path / 'plots')
    assert [f.name for f in files] == ['parts.svg', 'parts.png']
    text = files[0].read_text()
    assert all(part in text for part in ('lors', 'backbone', 'mixing, shared'))
    assert files[1].read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        ({'type': 'RetinaNet'}, r"'AdaMixerDecoder', got None"),
        ({'decoder': {'type': 'Detr'}}, r"'AdaMixerDecoder', got {'type'"),
    ],
)
def test_a_model_without_our_decoder(model: dict, message: str) -> None:
    with pytest.raises(UsageError, match=f'model.decoder: .*{message}'):
        report(model)


def test_a_decoder_that_lists_ranks() -> None:
    kernels = {'mode': 'lors', 'rank': [1, 2, 3]}
    config = decoder_config(stacks={'mixing_kernels': kernels})
    config = {'type': 'AdaMixerDecoder', **config}
    assert report(detector_config(decoder=config)).parts['decoder'].private
