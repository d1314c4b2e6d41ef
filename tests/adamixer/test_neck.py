# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
import torch.nn.functional as F

from lors_det.adamixer import SharedNormMapper


def test_one_norm_for_all_levels() -> None:
    neck = SharedNormMapper([4, 8], 64)
    torch.nn.init.normal_(neck.norm.weight)
    feats = [torch.randn(2, 4, 6, 8), torch.randn(2, 8, 3, 4)]
    for level, found in enumerate(neck(feats)):
        conv = neck.convs[level]
        x = F.conv2d(feats[level], conv.weight, conv.bias)
        x = x.view(2, 32, -1)  # 32 groups
        x = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        x = x.view_as(found) * neck.norm.weight[:, None, None]
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
