"""Whether two sets of detections are the same, within a stated tolerance."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

# Boxes below this score are left out: which of them survive NMS hangs on the last digits.
MIN_SCORE = 0.05
SCORE_TOLERANCE = 2e-3
PIXEL_TOLERANCE = 0.5


@dataclass(frozen=True)
class BoxAgreement:
    """How far two sets of detections are apart.

    Attributes:
        boxes: Boxes compared, the larger of both counts.
        unmatched: Boxes of either side without a partner within tolerance.
        max_score: Largest difference of scores among partners.
        max_pixels: Largest difference of coordinates among partners, in pixels.
    """

    boxes: int
    unmatched: int
    max_score: float
    max_pixels: float

    @property
    def passed(self) -> bool:
        """Whether every box has its partner."""
        return self.unmatched == 0

    @classmethod
    def of_images(cls, parts: Collection[BoxAgreement]) -> BoxAgreement:
        """The agreements of several images, at least one, as one."""
        return cls(
            sum(part.boxes for part in parts),
            sum(part.unmatched for part in parts),
            max(part.max_score for part in parts),
            max(part.max_pixels for part in parts),
        )

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.boxes} boxes, {self.unmatched} without a partner, scores within "
            f"{self.max_score:.1e}, corners within {self.max_pixels:.1e} pixels"
        )


def compare_boxes(left: np.ndarray, right: np.ndarray) -> BoxAgreement:
    """Match the boxes of one image from two engines.

    Args:
        left: float [N, 6] (class, score, xyxy in pixels).
        right: float [M, 6].

    A box close to the score limit may lack a partner; one that is clearly above may not.
    """
    rows = [_rows(left), _rows(right)]
    sides = [side[side[:, 1] >= MIN_SCORE] for side in rows]
    # A partner may have dropped just below the limit: look for it there as well.
    near = [side[side[:, 1] >= MIN_SCORE - SCORE_TOLERANCE] for side in rows]
    unmatched, score, pixels = 0, 0.0, 0.0
    for boxes, others in ((sides[0], near[1]), (sides[1], near[0])):
        for box in boxes:
            distances = _distances(box, others)
            if not len(distances) or not (distances <= 1.0).any():
                unmatched += 1
                continue
            partner = others[np.argmin(distances)]
            score = max(score, float(abs(partner[1] - box[1])))
            pixels = max(pixels, float(np.abs(partner[2:] - box[2:]).max()))
    return BoxAgreement(max(len(sides[0]), len(sides[1])), unmatched, score, pixels)


def _rows(boxes: np.ndarray) -> np.ndarray:
    """Boxes as [N, 6]; Paddle's NMS may give a single -1 where there is none."""
    return boxes if boxes.shape[-1] == 6 else np.zeros((0, 6), np.float32)


def _distances(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance to every other box, 1 at the edge of the tolerance; infinite across classes."""
    scores = np.abs(others[:, 1] - box[1]) / SCORE_TOLERANCE
    corners = np.abs(others[:, 2:] - box[2:]).max(axis=1, initial=0.0) / PIXEL_TOLERANCE
    return np.where(others[:, 0] == box[0], np.maximum(scores, corners), np.inf)
