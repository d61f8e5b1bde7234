"""Checks annotated boxes against the size of their image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slim_det.evaluate.data.findings import Findings, Kind

EXPECTED_SIZE = "expected the size of the image once it is decoded, turned as its EXIF says"

REVERSED = Kind("reversed box", "reversed boxes", "expected a least corner and then a largest")
FLAT = Kind("box without area", "boxes without area", "expected a width and a height above 0")
OUTSIDE = Kind("box outside its image", "boxes outside their images", "expected pixels of it")
POINT = Kind(
    "box that is a single point",
    "boxes that are a single point",
    "they have no area and are left out",
)
AT_EDGE = Kind(
    "box within the last pixel of its image",
    "boxes within the last pixel of their images",
    "they are left out",
)
BEYOND = Kind(
    "box partly outside its image",
    "boxes partly outside their images",
    "they are cut off at its edge",
)


def limited(boxes_xyxy: np.ndarray, largest_hw: tuple[float, float]) -> np.ndarray:
    """Limit corners to 0 .. ``largest_hw``, in pixels; [n, 4]."""
    height, width = largest_hw
    least: np.ndarray = np.maximum(boxes_xyxy, (0, 0, -np.inf, -np.inf))
    return np.minimum(least, (np.inf, np.inf, width, height))


def check_corners(
    boxes_xyxy: np.ndarray,
    size_hw: tuple[float, float],
    places: Sequence[str],
    findings: Findings,
    last: float = 1.0,
) -> np.ndarray:
    """Say which boxes cannot be found in their image, or not as they are written.

    A box that is reversed, has no width or no height, or lies outside is a fault. One without
    both is what a click leaves, and is left out.

    Args:
        boxes_xyxy: Corners in pixels, float64 [n, 4].
        size_hw: Height and width of the image in pixels.
        places: Where each box is annotated.
        findings: Receives faults and remarks.
        last: Pixels at the right and at the bottom that boxes do not reach.

    Returns:
        Indices of the boxes that have an area inside the image, int [m].
    """
    height, width = size_hw
    cut = limited(boxes_xyxy, (height - last, width - last))
    kept = []
    for i, (x1, y1, x2, y2) in enumerate(boxes_xyxy.tolist()):
        place = f"{places[i]} {x1:g} {y1:g} {x2:g} {y2:g} of {width:g}x{height:g}"
        if x2 < x1 or y2 < y1:
            findings.fault(REVERSED, place)
        elif x1 == x2 and y1 == y2:
            findings.remark(POINT, place)
        elif x1 == x2 or y1 == y2:
            findings.fault(FLAT, place)
        elif x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            findings.fault(OUTSIDE, place)
        elif cut[i, 0] >= cut[i, 2] or cut[i, 1] >= cut[i, 3]:
            findings.remark(AT_EDGE, place)
        else:
            kept.append(i)
            if min(x1, y1) < 0 or x2 > width or y2 > height:
                findings.remark(BEYOND, place)
    return np.array(kept, np.int64)
