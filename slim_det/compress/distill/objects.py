"""Where the objects of a training batch are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from slim_det.core.errors import TrainingError


def object_boxes(batch: Mapping[str, Any]) -> list[np.ndarray]:
    """Boxes of the objects of each image, as shares of its width and height.

    Args:
        batch: ``image`` [N, 3, H, W], and ``gt_bbox`` in pixels, x1, y1, x2 and y2: a tensor
            [N, M, 4] that is filled up with boxes without area, or one [M, 4] for each image.

    Returns:
        For each image float64 [objects, 4]; boxes without area are left out.

    Raises:
        TrainingError: The batch has no boxes.
    """
    if "gt_bbox" not in batch:
        raise TrainingError(
            "the batch has no 'gt_bbox', which a distillation loss reads; expected it in the "
            "data_fields of TrainDataset and no transform of TrainReader that removes it"
        )
    height, width = (int(size) for size in batch["image"].shape[2:])
    scale = np.array([width, height, width, height], dtype=np.float64)
    found = []
    for image in batch["gt_bbox"]:
        boxes = np.asarray(image, dtype=np.float64).reshape([-1, 4]) / scale
        found.append(boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])])
    return found
