# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from helpers.factories import positions, randomise

from lors_det.adamixer.attention import QueryAttention
from lors_det.adamixer.geometry import (
    decode_xyzr,
    intersection_over_foreground,
    position_embedding,
)


def test_attention_is_the_definition() -> None:
    module = QueryAttention(2, 16, 4).double()
    randomise(module)
    content = torch.randn(1, 5, 16, dtype=torch.float64)
    xyzr = positions(1, 5).double()
    x = (content + position_embedding(xyzr, 16))[0]
    iof = intersection_over_foreground(decode_xyzr(xyzr))[0]
    heads = []
    for head in range(4):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (
            x @ weight[rows].T + bias[rows]
            for weight, bias in zip(
                module.in_proj.weight(1).chunk(3),
                module.in_proj.bias[1].chunk(3),
                strict=True,
            )
        )
        logits = q @ k.T / 4**0.5
        logits += module.iof_tau[1][head] * (iof + 1e-7).log()
        heads.append(logits.softmax(-1) @ v)
    attended = torch.cat(heads, -1) @ module.out_proj.weight(1).T
    expected = module.norm[1](x + attended + module.out_proj.bias[1])
    torch.testing.assert_close(module(content, xyzr, 1)[0], expected)


def test_positions_get_no_gradient() -> None:
    module = QueryAttention(1, 16, 4)
    xyzr = positions(1, 5).requires_grad_()
    content = torch.randn(1, 5, 16, requires_grad=True)
    module(content, xyzr, 0).square().sum().backward()
    assert xyzr.grad is None
    assert content.grad.any()
    assert module.iof_tau[0].grad.any()
