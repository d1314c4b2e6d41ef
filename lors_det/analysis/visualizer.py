# SPDX-License-Identifier: Apache-2.0
"""Pictures of detections whose boxes reach beyond the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.registry import VISUALIZERS
from mmdet.visualization import DetLocalVisualizer
from torch import Tensor


@VISUALIZERS.register_module()
class BoundedDetVisualizer(DetLocalVisualizer):
    """mmdet's visualizer, with boxes drawn no further than the image.

    AdaMixer does not clip boxes. A box that reaches beyond the image makes
    the canvas grow, and the picture is drawn smaller and out of place.
    """

    def draw_bboxes(
        self, bboxes: np.ndarray[Any, Any] | Tensor, *args: Any, **kwargs: Any
    ) -> DetLocalVisualizer:
        """Draw boxes, clipped to the image.

        Args:
            bboxes: (N, 4) x1, y1, x2, y2 in pixels.
            args: As in mmengine's ``Visualizer.draw_bboxes``.
            kwargs: As in mmengine's ``Visualizer.draw_bboxes``.

        Returns:
            The visualizer.
        """
        boxes = torch.as_tensor(bboxes).reshape(-1, 4)
        limit = boxes.new_tensor([self.width, self.height] * 2) - 1
        inside = torch.minimum(boxes.clamp(min=0), limit)
        return super().draw_bboxes(inside, *args, **kwargs)
