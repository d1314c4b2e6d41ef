# SPDX-License-Identifier: Apache-2.0
"""Mixed precision without a GPU: lors_det/precision.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.factories import build, detector_config
from mmdet.testing import demo_mm_inputs
from torch import Tensor, nn

from lors_det import precision
from lors_det.precision import CpuAmpOptimWrapper, choose_type, predict_in


@pytest.mark.parametrize(
    ('device', 'has_bfloat16', 'expected'),
    [
        ('cpu', False, 'bfloat16'),
        ('cuda', True, 'bfloat16'),
        ('cuda:1', False, 'float16'),
    ],
)
def test_the_type_where_none_is_named(
    device: str,
    has_bfloat16: bool,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        torch.cuda, 'is_bf16_supported', lambda **_: has_bfloat16
    )
    assert choose_type(device) == expected


@pytest.mark.parametrize(
    ('flags', 'useless'),
    [
        ('flags: avx2 avx512f', {'bfloat16', 'float16'}),
        ('flags: avx512f avx512_bf16', {'float16'}),
        ('flags: amx_bf16 avx512_fp16', set()),
        ('Features: asimdhp bf16', set()),
        (None, set()),
    ],
)
def test_types_that_gain_nothing(
    flags: str | None,
    useless: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    info = tmp_path / 'cpuinfo'
    monkeypatch.setattr(precision, 'CPU_INFO', info)
    if flags is not None:
        info.write_text(flags)
    for dtype in ('bfloat16', 'float16'):
        precision.remark(dtype, 'cpu')
        text = capsys.readouterr().out
        assert text.startswith(dtype) == (dtype in useless)
        assert text.count('\n') == (dtype in useless)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_predictions_are_float32(dtype: str) -> None:
    model = build(detector_config()).eval()
    batch = demo_mm_inputs(1, [(3, 64, 96)])
    with torch.no_grad():
        (expected,) = model.test_step(batch)
        expected = expected.pred_instances.clone()
        seen = []
        model.decoder.attention.in_proj.register_forward_hook(
            lambda module, args, result: seen.append(str(result.dtype))
        )
        predict_in(model, dtype, 'cpu')
        (sample,) = model.test_step(batch)
    assert set(seen) == {f'torch.{dtype}'}
    found = sample.pred_instances
    for name in ('scores', 'bboxes'):
        assert found[name].dtype == torch.float32
    torch.testing.assert_close(
        found.scores, expected.scores, rtol=0, atol=0.02
    )


def test_predictions_of_other_detectors() -> None:
    """Theirs are bfloat16, which numpy does not know."""

    class Other:
        def test_step(self, batch: Tensor) -> list[object]:
            scores = nn.Linear(3, 2)(batch)
            return [InstanceSample(scores)]

    class InstanceSample:
        def __init__(self, scores: Tensor) -> None:
            labels = torch.tensor([0])
            self.pred_instances = {'scores': scores, 'labels': labels}

    model = Other()
    predict_in(model, 'bfloat16', 'cpu')
    (sample,) = model.test_step(torch.ones(1, 3))
    found = sample.pred_instances
    assert found['scores'].dtype == torch.float32
    assert found['labels'].dtype == torch.long


@pytest.mark.parametrize(
    ('dtype', 'loss_scale', 'scale'),
    [
        ('bfloat16', 1.0, 1.0),
        ('float16', {'init_scale': 8.0}, 8.0),
    ],
)
def test_a_training_step(dtype: str, loss_scale: object, scale: float) -> None:
    """The forward runs in the type; the step is that of the true gradient."""
    model = nn.Linear(4, 1, bias=False)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = CpuAmpOptimWrapper(dtype, loss_scale, optimizer=optimizer)
    assert wrapper.loss_scaler.get_scale() == scale
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    with wrapper.optim_context(model):
        result = model(inputs)
        assert result.dtype == getattr(torch, dtype)
    wrapper.update_params(result.float().sum())
    torch.testing.assert_close(before - model.weight, inputs)
    other = CpuAmpOptimWrapper(dtype, optimizer=optimizer)
    assert other.loss_scaler.get_scale() == 65536  # torch's own
    other.load_state_dict(wrapper.state_dict())
    assert other.loss_scaler.get_scale() == scale
