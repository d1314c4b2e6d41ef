# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from factories import randomise, stacks

from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.lors import MODES


def mixing(mode: str) -> AdaptiveMixing:
    config = stacks(mode)
    return AdaptiveMixing(
        3, 16, 2, 4, 6, config['mixing_kernels'], config['mixing_out_proj']
    )


@pytest.mark.parametrize('mode', MODES)
def test_mixing_is_the_definition(mode: str) -> None:
    module = mixing(mode).double()
    randomise(module)
    x = torch.randn(1, 2, 2, 4, 8, dtype=torch.float64)
    query = torch.randn(1, 2, 16, dtype=torch.float64)
    stage = 1
    for n in range(2):
        mixed = []
        for g in range(2):
            m = module.channel(query, stage)[0, n, g]
            s = module.spatial(query, stage)[0, n, g]
            y = F.relu(F.layer_norm(x[0, n, g] @ m, (4, 8)))
            mixed.append(F.relu(F.layer_norm(s @ y, (6, 8))).flatten())
        added = module.out_proj.weight(stage) @ torch.cat(mixed)
        added = added + module.out_proj.bias[stage]
        expected = module.norm[stage](query[0, n] + added)
        torch.testing.assert_close(module(x, query, stage)[0, n], expected)


def test_rank_zero_equals_shared() -> None:
    shared = mixing('shared')
    lors = AdaptiveMixing(
        3, 16, 2, 4, 6,
        {'mode': 'lors', 'rank': 0}, {'mode': 'lors', 'rank': 0},
    )  # fmt: skip
    randomise(shared)
    lors.load_state_dict(shared.state_dict())
    x, query = torch.randn(1, 2, 2, 4, 8), torch.randn(1, 2, 16)
    for stage in range(3):
        assert torch.equal(lors(x, query, stage), shared(x, query, stage))


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


def test_errors() -> None:
    with pytest.raises(
        ValueError, match=r'embed_dims=16 is not divisible by decoder.num_gr'
    ):
        AdaptiveMixing(1, 16, 3, 4, 6)
