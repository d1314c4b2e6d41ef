# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from helpers.factories import positions

from lors_det.adamixer.geometry import (
    decode_xyzr,
    encode_boxes,
    intersection_over_foreground,
)


def test_boxes_and_positions_round_trip() -> None:
    xyzr = positions(2, 50).double()
    torch.testing.assert_close(encode_boxes(decode_xyzr(xyzr)), xyzr)


def test_a_box_without_area_lies_in_no_other() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [2, 2, 4, 2]]])
    iof = intersection_over_foreground(boxes)[0]
    assert iof[1].tolist() == [0.0, 0.0]  # no division by zero


def test_a_position_has_four_numbers() -> None:
    with pytest.raises(ValueError, match=r'\(2, 5\): expected \(\.\., 4\)'):
        decode_xyzr(torch.zeros(2, 5))
