"""Masks of the same boxes are compared, whatever their order."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.evaluate.detections import Detections
from slim_det.evaluate.mask_agreement import mask_difference

BOXES = Detections(
    np.array([[0, 0, 4, 4], [4, 4, 8, 8], [0, 4, 4, 8]]), np.array([0.9, 0.5, 0.01]), [0, 1, 0]
)
MASKS = np.zeros((3, 8, 8), np.int32)
MASKS[0, :4, :4] = MASKS[1, 4:, 4:] = MASKS[2, 4:, :4] = 1


def test_same_masks() -> None:
    assert mask_difference(BOXES, MASKS, BOXES, MASKS) == 0.0
    order = np.array([2, 1, 0])
    assert mask_difference(BOXES, MASKS, BOXES[order], MASKS[order]) == 0.0


def test_boxes_without_a_score_are_not_compared() -> None:
    other = MASKS.copy()
    other[2] = 0
    assert mask_difference(BOXES, MASKS, BOXES, other) == 0.0


def test_share_of_pixels() -> None:
    """Of two masks with 16 pixels, one has lost a row of four."""
    other = MASKS.copy()
    other[1, 4] = 0
    assert mask_difference(BOXES, MASKS, BOXES, other) == pytest.approx(4 / 32)
    assert mask_difference(BOXES, other, BOXES, MASKS) == pytest.approx(4 / 32)


def test_masks_that_cannot_be_compared() -> None:
    assert mask_difference(BOXES, MASKS, BOXES, MASKS[:, :4]) == 1.0
    assert mask_difference(BOXES, MASKS[:2], BOXES, MASKS) == 1.0
    assert mask_difference(BOXES, MASKS, BOXES[:0], MASKS[:0]) == 1.0


def test_nothing_found() -> None:
    assert mask_difference(BOXES[:0], MASKS[:0], BOXES[:0], MASKS[:0]) == 0.0
