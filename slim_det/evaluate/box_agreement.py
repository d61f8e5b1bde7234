"""Whether two sets of detections are the same, within a stated tolerance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from slim_det.evaluate.detections import Detections

# Boxes below this score are ignored: rounding decides which of them survive NMS.
MIN_SCORE = 0.05
SCORE_TOLERANCE = 2e-3
PIXEL_TOLERANCE = 0.5


@dataclass(frozen=True)
class BoxAgreement:
    """How much two sets of detections differ.

    Attributes:
        boxes: Number of boxes compared, the larger of the two counts.
        unmatched: Boxes on either side without a partner within tolerance.
        max_score: Largest score difference between partners.
        max_pixels: Largest coordinate difference between partners, in pixels.
    """

    boxes: int
    unmatched: int
    max_score: float
    max_pixels: float

    @property
    def passed(self) -> bool:
        """Whether every box has a partner."""
        return self.unmatched == 0

    @classmethod
    def of_images(cls, parts: Collection[BoxAgreement]) -> BoxAgreement:
        """Combine the agreements of one or more images."""
        return cls(
            sum(part.boxes for part in parts),
            sum(part.unmatched for part in parts),
            max(part.max_score for part in parts),
            max(part.max_pixels for part in parts),
        )

    def __str__(self) -> str:
        """One human-readable line."""
        return (
            f"{self.boxes} boxes, {self.unmatched} without a partner, scores within "
            f"{self.max_score:.1e}, corners within {self.max_pixels:.1e} pixels"
        )


def compare_boxes(left: Detections, right: Detections) -> BoxAgreement:
    """Match the boxes that two engines found in one image.

    Only boxes with a score of at least `MIN_SCORE` need a partner.
    """
    unmatched, score, pixels = 0, 0.0, 0.0
    for found, others in ((left, right), (right, left)):
        found = found[found.scores >= MIN_SCORE]
        # A partner's score may lie just below the limit.
        others = others[others.scores >= MIN_SCORE - SCORE_TOLERANCE]
        for box, box_score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids):
            scores = np.abs(others.scores - box_score)
            corners = np.abs(others.boxes_xyxy - box).max(axis=1, initial=0.0)
            # 1 is the edge of the tolerance; a box of another class is no partner.
            distances = np.maximum(scores / SCORE_TOLERANCE, corners / PIXEL_TOLERANCE)
            distances = np.where(others.class_ids == class_id, distances, np.inf)
            if not (distances <= 1.0).any():
                unmatched += 1
                continue
            partner = np.argmin(distances)
            score = max(score, float(scores[partner]))
            pixels = max(pixels, float(corners[partner]))
    boxes = max(int((side.scores >= MIN_SCORE).sum()) for side in (left, right))
    return BoxAgreement(boxes, unmatched, score, pixels)
