"""Whether two engines give the same masks of objects, for boxes that agree."""

from __future__ import annotations

import numpy as np

from slim_det.evaluate.box_agreement import MIN_SCORE
from slim_det.evaluate.detections import Detections

MASK_TOLERANCE = 0.02
"""Allowed share of the pixels of all masks that only one engine has: edges move by rounding."""


def mask_difference(
    found: Detections, masks: np.ndarray, expected: Detections, expected_masks: np.ndarray
) -> float:
    """Share of the pixels of masks that only one of two engines has.

    Args:
        found: The boxes of one engine; see `slim_det.evaluate.box_agreement.compare_boxes`.
        masks: Their masks, int [n, height, width]; 1 inside.
        expected: The boxes of the other.
        expected_masks: Their masks.

    Returns:
        0 to 1, over all boxes with a score of at least `MIN_SCORE`; 1 if shapes differ.
    """
    if masks.shape[1:] != expected_masks.shape[1:] or len(found) != len(masks):
        return 1.0
    apart = total = 0
    for place in np.flatnonzero(found.scores >= MIN_SCORE):
        distances = np.abs(expected.boxes_xyxy - found.boxes_xyxy[place]).max(axis=1, initial=0.0)
        distances = distances + np.abs(expected.scores - found.scores[place])
        distances[expected.class_ids != found.class_ids[place]] = np.inf
        if not np.isfinite(distances).any():
            return 1.0
        one, other = masks[place] > 0, expected_masks[np.argmin(distances)] > 0
        apart += int((one != other).sum())
        total += int((one | other).sum())
    return apart / total if total else 0.0
