# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.factories import build, decoder, decoder_config, detector_config
from torch import nn

from lors_det.adamixer import AdaMixer
from lors_det.analysis.costs import ModelReport, build_on_meta, report
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
    stages = ('attention', 'sampling', 'mixing', 'ffn', 'heads')
    for kind in ('shared', 'private', 'dense', 'other', 'gmacs'):
        inside = [
            getattr(lors.parts[f'decoder.{name}'], kind) for name in stages
        ]
        whole = getattr(lors.parts['decoder'], kind)
        assert sum(inside) == pytest.approx(whole)
    whole = sum(
        lors.parts[name].total
        for name in ('backbone', 'neck', 'queries', 'decoder')
    )
    assert lors.parts['model'].total == whole
    dense = sum(p.numel() for p in decoder('dense').parameters())
    assert lors.dense_decoder == dense


def test_bytes(lors: ModelReport) -> None:
    model = build(detector_config('lors'))
    state = model.state_dict()
    assert lors.checkpoint_bytes == sum(
        x.numel() * x.element_size() for x in state.values()
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    assert lors.allreduce_bytes == 4 * sum(p.numel() for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(
        x.numel() * 4
        for slot in optimizer.state.values()
        for name, x in slot.items()
        if name.startswith('exp_avg')
    )
    weights = sum(4 * p.numel() for p in model.parameters())
    gradients = sum(4 * p.numel() for p in trained)
    assert lors.training_bytes == weights + gradients + moments


def test_multiply_adds_of_dense_mixing() -> None:
    """Against the closed form; three stages, seven queries."""
    parts = report(detector_config('dense')).parts
    queries, stages, c, groups, p_in, p_out = 7, 3, 32, 2, 4, 6
    width = c // groups
    each = queries * stages
    sizes = width * width + p_out * p_in
    generators = parts['decoder.mixing.channel'].gmacs
    generators += parts['decoder.mixing.spatial'].gmacs
    assert generators == pytest.approx(each * c * groups * sizes / 1e9)
    out_proj = parts['decoder.mixing.out_proj'].gmacs
    assert out_proj == pytest.approx(each * c * p_out * c / 1e9)
    products = parts['decoder.mixing'].gmacs - generators - out_proj
    assert products == pytest.approx(
        each * groups * (p_in * width * width + p_out * p_in * width) / 1e9
    )
    assert parts['decoder.ffn'].gmacs == pytest.approx(each * 2 * c * 16 / 1e9)


def test_neck_multiply_adds() -> None:
    parts = report(detector_config('dense')).parts
    cells = [
        (800 // s) * (1344 // s) * c
        for s, c in ((4, 8), (8, 16), (16, 32), (32, 64))
    ]
    assert parts['neck'].gmacs == pytest.approx(sum(cells) * 32 / 1e9)


def test_deformable_convolution_is_counted() -> None:
    plain = detector_config('lors')
    deformable = detector_config('lors')
    deformable.backbone.update(
        depth=50,
        dcn={'type': 'DCN', 'deform_groups': 1, 'fallback_on_stride': False},
        stage_with_dcn=(False, True, True, True),
    )
    plain.backbone.depth = 50
    channels = [32, 64, 128, 256]
    plain.neck.in_channels = deformable.neck.in_channels = channels
    less, more = (
        report(c).parts['backbone'].gmacs for c in (plain, deformable)
    )
    assert more > less  # the same products, and the offsets' convolutions


def test_swin_is_built() -> None:
    config = detector_config('lors')
    config.backbone = {
        'type': 'SwinTransformer',
        'embed_dims': 8,
        'depths': [1, 1, 1, 1],
        'num_heads': [1, 1, 1, 1],
        'drop_path_rate': 0.2,
    }
    model = build_on_meta(config)
    assert isinstance(model, AdaMixer)
    assert all(p.is_meta for p in model.parameters())
    assert isinstance(model.backbone, nn.Module)


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
