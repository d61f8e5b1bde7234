"""Detections from rows as an NMS has them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim_det.evaluate.detections import Detections


def found_in(*rows: Sequence[Any]) -> Detections:
    """Detections of one image: rows of (class, score, x1, y1, x2, y2)."""
    return Detections.from_rows(np.array(rows, np.float32).reshape(-1, 6))


def rows_of(found: Detections) -> np.ndarray:
    """float64 [n, 6]: class, score, xyxy."""
    return np.column_stack((found.class_ids, found.scores, found.boxes_xyxy))
