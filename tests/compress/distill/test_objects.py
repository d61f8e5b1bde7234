"""Boxes of a batch as shares of its images."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from slim_det.compress.distill.objects import object_boxes
from slim_det.core.errors import TrainingError

IMAGE = paddle.zeros([2, 3, 40, 80])
PIXELS = np.array([[8.0, 4.0, 80.0, 40.0]], "float32")
SHARES = [[0.1, 0.1, 1.0, 1.0]]


def test_boxes_that_fill_up_a_batch_are_left_out() -> None:
    """Zeros, and anything else without area."""
    filled = np.zeros((2, 3, 4), "float32")
    filled[0, 0] = PIXELS[0]
    filled[0, 1] = [5, 5, 5, 9]
    boxes = object_boxes({"image": IMAGE, "gt_bbox": paddle.to_tensor(filled)})
    assert [len(image) for image in boxes] == [1, 0]
    assert boxes[0] == pytest.approx(np.array(SHARES))


def test_lists_of_unequal_length() -> None:
    given = [paddle.zeros([0, 4]), paddle.to_tensor(PIXELS)]
    boxes = object_boxes({"image": IMAGE, "gt_bbox": given})
    assert boxes[0].shape == (0, 4)
    assert boxes[1] == pytest.approx(np.array(SHARES))


def test_a_batch_without_boxes_is_one_line() -> None:
    with pytest.raises(TrainingError, match="no 'gt_bbox', which a distillation loss reads"):
        object_boxes({"image": IMAGE})
