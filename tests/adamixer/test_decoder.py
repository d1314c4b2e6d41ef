# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.factories import (
    decoder,
    positions,
    pyramid,
    randomise,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lors_det.lors import MODES

Inputs = tuple[list[Tensor], Tensor, Tensor]
all_modes = pytest.mark.parametrize('mode', MODES)


def inputs(batch: int, num_queries: int = 7, **options: Any) -> Inputs:
    """Feature maps, and content and positions of queries."""
    content = torch.randn(batch, num_queries, 32)
    return pyramid(batch, **options), content, positions(batch, num_queries)


@all_modes
def test_every_parameter_gets_a_gradient(mode: str) -> None:
    model = decoder(mode)
    randomise(model)
    outputs = model(*inputs(2))
    loss = sum(
        (o.cls_logits * torch.randn_like(o.cls_logits)).sum()
        + (o.xyzr * torch.randn_like(o.xyzr)).sum()
        for o in outputs
    )
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@all_modes
def test_initial_gradients_reach_every_stack(mode: str) -> None:
    """No mode starts dead: two steps move every parameter but B's partner."""
    model = decoder(mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        outputs = model(*inputs(2))
        loss = sum((o.cls_logits - 1).square().sum() for o in outputs)
        loss = loss + sum((o.xyzr - 3).abs().sum() for o in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    stuck = [
        name
        for (name, p), b in zip(model.named_parameters(), before, strict=True)
        if torch.equal(p, b)
    ]
    assert not stuck


@all_modes
def test_images_and_queries_are_independent(mode: str) -> None:
    """A batch is its images one by one; the order of queries is free."""
    model = decoder(mode).double()
    randomise(model)
    feats, content, xyzr = inputs(3)
    feats = [feat.double() for feat in feats]
    content, xyzr, order = content.double(), xyzr.double(), torch.randperm(7)
    batched = model(feats, content, xyzr)
    for b in range(3):
        one = slice(b, b + 1)
        single = model(
            [f[one] for f in feats], content[one, order], xyzr[one, order]
        )
        for s, many in zip(single, batched, strict=True):
            for found, expected in zip(s, many, strict=True):
                torch.testing.assert_close(found, expected[one, order])


def test_positions_are_detached_between_stages() -> None:
    model = decoder()
    randomise(model)
    outputs = model(*inputs(1))
    outputs[-1].bboxes.sum().backward()
    first, last = model.heads.reg.out.dense[0], model.heads.reg.out.dense[-1]
    assert first.grad is None  # the first refinement is behind a detach
    assert last.grad.any()
    assert model.ffn.fc1.dense[0].grad.any()  # content is not detached


@all_modes
def test_init_weights_twice_equals_once_in_law(mode: str) -> None:
    sizes = {'embed_dims': 64, 'in_points': 16, 'out_points': 32}
    model = decoder(mode, **sizes, feedforward_channels=128)

    def spreads() -> dict[str, torch.Tensor]:
        return {
            name: x.square().mean().sqrt()
            for name, x in model.named_parameters()
            if x.numel() >= 2000 or not x.any()
        }

    once = spreads()
    model.init_weights()
    model.init_weights()
    for name, value in spreads().items():
        torch.testing.assert_close(value, once[name], rtol=0.15, atol=0)


def test_a_checkpoint_holds_every_tensor_once() -> None:
    model = decoder()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    tensors = list(model.state_dict().values())
    assert len({x.data_ptr() for x in tensors}) == len(tensors)
    payload = 4 * sum(p.numel() for p in model.parameters())
    # Per tensor: a name, and alignment to 64 bytes in the archive.
    assert payload <= len(file.getvalue()) < payload + 600 * len(tensors)


def test_one_graph_for_all_sizes() -> None:
    """Traced whole, once for training and once for prediction.

    Number of images and size of the pyramid are free in both, as long as the
    low-rank terms are cheapest at the same place. (Sizes that are equal at
    the first call would count as the same size.)
    """
    config = {
        'num_stages': 1,
        'stacks': {'mixing_kernels': {'mode': 'lors', 'rank': 2}},
    }
    model = decoder(**config)
    randomise(model)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(
        model, fullgraph=True, dynamic=True, backend=counter
    )
    for batch, size in ((6, (160, 224)), (5, (288, 192))):
        batch_of = inputs(batch, 11, size=size)
        for train in (True, False):
            with torch.set_grad_enabled(train):
                found = compiled(*batch_of)[-1]
                expected = model(*batch_of)[-1]
            torch.testing.assert_close(found, expected)
    assert counter.frame_count == 2


class OnDevice(TorchDispatchMode):
    """Refuses operators that read or write the host, of tensors on meta.

    ``meta`` stands for a GPU: no value can be read from either in passing.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            if isinstance(x, Tensor) and x.device.type != 'meta':
                raise AssertionError(f'{func} on {x.device}')
        return out


class NoNumbers(TorchFunctionMode):
    """Refuses tensors of numbers, which would be copied from the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            raise AssertionError(func)
        return func(*args, **(kwargs or {}))


@all_modes
def test_forward_never_leaves_the_gpu(mode: str) -> None:
    """No copy to or from the host, no wait for a value: it can be recorded."""
    with torch.device('meta'):
        model = decoder(mode)
        feats, content, xyzr = inputs(2)
        feats = [feat.requires_grad_() for feat in feats]
        with OnDevice(), NoNumbers():
            model(feats, content, xyzr)


@pytest.mark.parametrize(
    'leave',
    [
        lambda x: x + x.new_tensor([1.0, 2.0]),
        lambda x: x + torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x + torch.ones(2, device='cpu').to(x.device),
        lambda x: x.cpu(),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
    ],
)
def test_what_leaves_the_gpu_is_seen(leave: Callable[[Tensor], Any]) -> None:
    with torch.device('meta'):
        x = torch.randn(2)
        with OnDevice(), NoNumbers():
            with pytest.raises((AssertionError, RuntimeError)):
                leave(x)
