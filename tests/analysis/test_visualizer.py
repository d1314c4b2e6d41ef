# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import torch

from lors_det.analysis.visualizer import BoundedDetVisualizer


def test_a_box_beyond_the_image_leaves_it_in_place() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 10:30] = 255  # would move and shrink with the canvas
    visualizer = BoundedDetVisualizer()
    visualizer.set_image(image)
    visualizer.draw_bboxes(torch.zeros(0, 4))
    visualizer.draw_bboxes(
        torch.tensor([[-50.0, -20.0, 300.0, 90.0]]), edge_colors='r'
    )
    drawn = visualizer.get_image()
    assert drawn.shape == image.shape
    assert np.abs(drawn[5:35, 5:55].astype(int) - image[5:35, 5:55]).max() < 5
