# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from lors_det.adamixer.geometry import decode_xyzr
from lors_det.adamixer.queries import InitialQueries


def test_whole_images_and_normalised_content() -> None:
    queries = InitialQueries(5, 16)
    torch.nn.init.normal_(queries.content, mean=3, std=7)
    content, xyzr = queries(torch.tensor([[96.0, 64.0], [80.0, 60.0]]))
    assert content.shape == (2, 5, 16)
    torch.testing.assert_close(content.mean(-1), torch.zeros(2, 5))
    torch.testing.assert_close(
        content.var(-1, correction=0), torch.ones(2, 5), rtol=1e-3, atol=0
    )
    boxes = decode_xyzr(xyzr)
    for image, box in enumerate([[0, 0, 96, 64], [0, 0, 80, 60]]):
        expected = torch.tensor(box).float().expand(5, 4)
        torch.testing.assert_close(boxes[image], expected, rtol=0, atol=1e-4)
    assert not xyzr.requires_grad
