# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on GPUs and processors: ``--amp`` and ``--dtype``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn
from torch.amp.grad_scaler import GradScaler

from lors_det.adamixer.geometry import at_least_float32

CPU_INFO = Path('/proc/cpuinfo')
#: How it names the instructions of a type.
CPU_FLAGS = {
    'bfloat16': ('bf16',),
    'float16': ('avx512_fp16', 'amx_fp16', 'asimdhp'),
}


def choose_type(device: str) -> str:
    """Return the type of mixed precision where none is named.

    Args:
        device: As in torch.

    Returns:
        ``float16`` for a GPU without bfloat16, else ``bfloat16``.
    """
    return 'bfloat16' if _computes_in('bfloat16', device) else 'float16'


def autocast(dtype: str, device: str) -> torch.autocast:
    """Return a context, or decorator, that computes in a type.

    Args:
        dtype: ``float16``, ``bfloat16``; ``float32`` for no autocast.
        device: As in torch.
    """
    enabled = dtype != 'float32'
    return torch.autocast(
        device.split(':')[0],
        getattr(torch, dtype) if enabled else None,
        enabled,
    )


def predict_in(model: Any, dtype: str, device: str) -> None:
    """Let a model predict in a type; its predictions stay float32.

    Args:
        model: With mmengine's ``test_step``.
        dtype: See `autocast`.
        device: As in torch.
    """
    if dtype == 'float32':
        return
    remark(dtype, device)
    step = autocast(dtype, device)(model.test_step)

    def test_step(batch: Any) -> Any:
        samples = step(batch)
        for sample in samples:  # numpy knows no bfloat16
            found = getattr(sample, 'pred_instances', {})
            for name, value in found.items():
                found[name] = at_least_float32(value)
        return samples

    model.test_step = test_step


def gains(dtype: str, device: str) -> bool:
    """Return whether a device computes in a type; True if nobody can tell.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        device: As in torch.
    """
    if device == 'cpu' and CPU_INFO.is_file():
        text = CPU_INFO.read_text()
        return any(flag in text for flag in CPU_FLAGS[dtype])
    return device == 'cpu' or _computes_in(dtype, device)


def remark(dtype: str, device: str) -> None:
    """Say so in a line if a type gains nothing on a device.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        device: As in torch.
    """
    if not gains(dtype, device) and os.environ.get('RANK', '0') == '0':
        name = 'processor' if device == 'cpu' else 'GPU'
        print(
            f'{dtype} gains nothing here: this {name} has no instructions '
            'for it'
        )


def _computes_in(dtype: str, device: str) -> bool:
    """Tell whether a GPU has a type, and does not emulate it."""
    return (
        dtype == 'float16'
        or not device.startswith('cuda')
        or torch.cuda.is_bf16_supported(including_emulation=False)
    )


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper``, which asks for a GPU, on a processor.

    Args:
        dtype: ``float16`` or ``bfloat16``.
        loss_scale: ``dynamic``, the factor of the loss, or settings of
            ``torch.amp.GradScaler``.
        **kwargs: See mmengine's ``OptimWrapper``.
    """

    def __init__(
        self,
        dtype: str,
        loss_scale: str | float | Mapping[str, Any] = 'dynamic',
        **kwargs: Any,
    ) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, dtype)
        self._scale_update_param = None
        if loss_scale == 'dynamic':
            loss_scale = {}
        elif not isinstance(loss_scale, Mapping):
            self._scale_update_param = loss_scale = float(loss_scale)
            loss_scale = {'init_scale': loss_scale}
        self.loss_scaler = GradScaler('cpu', **loss_scale)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run a forward in the type."""
        with OptimWrapper.optim_context(self, model):
            with torch.autocast('cpu', self.cast_dtype):
                yield
