# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from helpers.factories import positions

from lors_det.adamixer.geometry import (
    at_least_float32,
    decode_xyzr,
    encode_boxes,
    intersection_over_foreground,
    position_embedding,
    refine_xyzr,
)


def test_boxes_and_positions_round_trip() -> None:
    xyzr = positions(2, 50).double()
    torch.testing.assert_close(encode_boxes(decode_xyzr(xyzr)), xyzr)


def test_decode_by_hand() -> None:
    # scale 2^3 = 8, h / w = 4: w = 4, h = 16
    box = decode_xyzr(torch.tensor([10.0, 20.0, 3.0, 2.0]))
    assert box.tolist() == [8.0, 12.0, 12.0, 28.0]
    with pytest.raises(ValueError, match=r'\(2, 5\): expected \(\.\., 4\)'):
        decode_xyzr(torch.zeros(2, 5))


def test_centre_moves_in_units_of_the_scale() -> None:
    xyzr = torch.tensor([10.0, 20.0, 3.0, 2.0])
    delta = torch.tensor([0.5, -1.0, 1.0, -2.0])
    assert refine_xyzr(xyzr, delta).tolist() == [14.0, 12.0, 4.0, 0.0]


def test_position_embedding_by_hand() -> None:
    xyzr = torch.tensor([[123.0, 456.0, 5.0, -1.0]], dtype=torch.float64)
    found = position_embedding(xyzr, 16)[0].tolist()
    expected = []
    for value in (0.123, 0.456, 5.0, -1.0):
        for j in range(2):
            angle = value / 10000 ** (2 * j / 4)
            expected += [math.sin(angle), math.cos(angle)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_overlap_by_hand() -> None:
    boxes = torch.tensor(
        [[[0.0, 0, 4, 4], [2, 2, 4, 6], [10, 10, 11, 11], [5, 5, 5, 9]]]
    )
    iof = intersection_over_foreground(boxes)[0]
    assert iof[0].tolist() == [1.0, 0.25, 0.0, 0.0]
    assert iof[1].tolist() == [0.5, 1.0, 0.0, 0.0]
    assert iof[3].tolist() == [0.0] * 4  # no area: no division by zero


def test_at_least_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert at_least_float32(torch.zeros(1, dtype=dtype)).dtype == (
            torch.float32
        )
    assert at_least_float32(torch.zeros(1).double()).dtype == torch.float64
