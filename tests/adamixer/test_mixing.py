# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.factories import randomise, stacks

from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.lors import MODES


def mixing(mode: str) -> AdaptiveMixing:
    config = stacks(mode)
    return AdaptiveMixing(
        3, 16, 2, 4, 6, config['mixing_kernels'], config['mixing_out_proj']
    )


def test_dense_projection_starts_with_xavier_and_lors_does_not() -> None:
    # U(b) has the spread b / sqrt(3).
    sizes = (2, 64, 2, 4, 32)
    dense = AdaptiveMixing(*sizes).out_proj.dense[0]
    spread = dense.std().item() * 3**0.5
    assert spread == pytest.approx((6 / (64 + 2048)) ** 0.5, rel=0.02)
    lors = {'mode': 'lors', 'rank': 1}
    module = AdaptiveMixing(*sizes, lors, lors)
    spread = module.out_proj.shared.std().item() * 3**0.5
    assert spread == pytest.approx(1 / 2048**0.5, rel=0.02)


def saved_bytes(function: Callable[[], torch.Tensor]) -> int:
    """Bytes that are kept for the backward pass, parameters aside."""
    kept = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, torch.nn.Parameter):
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function()
    out.sum().backward()
    return sum(kept.values())


@pytest.mark.parametrize('mode', MODES)
def test_with_cp_changes_nothing_but_memory(mode: str) -> None:
    module = mixing(mode).double()
    randomise(module)
    x = torch.randn(1, 5, 2, 4, 8, dtype=torch.float64, requires_grad=True)
    query = torch.randn(1, 5, 16, dtype=torch.float64, requires_grad=True)
    kept, found = [], []
    for module.with_cp in (False, True):
        out = module(x, query, 1)
        # Stages share no parameter with each other in the dense mode.
        used = [x, query, *module.parameters()]
        grads = torch.autograd.grad(out.sum(), used, allow_unused=True)
        found.append([out, *(g for g in grads if g is not None)])
        kept.append(saved_bytes(lambda: module(x, query, 1)))
    torch.testing.assert_close(found[1], found[0])
    assert kept[0] > 2 * kept[1]
