"""Matching and AP of WIDER FACE, on arrays.

The definition is that of the data set's own evaluation (Yang et al., "WIDER FACE: A Face Detection
Benchmark", 2016). For each setting (easy, medium, hard) some of an image's faces count and the
others are ignored. Detections are processed by descending score, ties in the given order:

* each is assigned to the face with the highest IoU (the first of ties) if that is at least 0.5;
* the first detection assigned to a face that counts is a true positive, later ones are false
  positives;
* a detection assigned to an ignored face is ignored;
* a detection assigned to no face is a false positive.

Scores are then rescaled to 0 ... 1 over the complete set, and precision and recall are computed at
1,000 thresholds, pooled over the images. AP is the area under the upper envelope of precision.

Images without any face are skipped: detections there count neither as true nor as false positives,
as in the data set's own evaluation.
"""

from __future__ import annotations

import numpy as np

SETTINGS = ("easy", "medium", "hard")

OVERLAP = 0.5
"""Least IoU at which a detection is assigned to a face (inclusive)."""

NUM_THRESHOLDS = 1000

THRESHOLDS = 1.0 - np.arange(1, NUM_THRESHOLDS + 1) / NUM_THRESHOLDS
"""Descending from 0.999 to 0; a score equal to a threshold passes it."""


def overlaps(boxes: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """IoU of every detection with every face.

    The far corner is the near corner plus the size, and a side is one pixel longer than the
    difference of the corners: a box of width w covers w + 1 pixels, for detections and faces alike.

    Args:
        boxes: float [n, 4], x y w h in pixels.
        faces: float [m, 4], in the same form.

    Returns:
        float64 [n, m]; 0 for boxes that do not touch.
    """
    low, high = _corners(boxes)
    face_low, face_high = _corners(faces)
    shared = np.minimum(high[0, :, None], face_high[0]) - np.maximum(low[0, :, None], face_low[0])
    shared += 1.0
    height = np.minimum(high[1, :, None], face_high[1]) - np.maximum(low[1, :, None], face_low[1])
    height += 1.0
    touching = (shared > 0.0) & (height > 0.0)
    shared *= height
    area, face_area = (high - low + 1.0).prod(axis=0), (face_high - face_low + 1.0).prod(axis=0)
    union = np.add(area[:, None], face_area, out=height)
    union -= shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=touching)


def judge(
    boxes: np.ndarray, scores: np.ndarray, faces: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match the detections of one image with its faces in every setting.

    Args:
        boxes: float [n, 4], x y w h in pixels.
        scores: float [n], finite.
        faces: float [m, 4], x y w h in pixels.
        counted: bool [s, m]: which faces count in each of s settings.

    Returns:
        ``hits`` and ``proposals``, bool [s, n] in the given order: whether the detection is a true
        positive, and whether it counts in precision. Nothing counts on an image without faces.
    """
    shape = len(counted), len(boxes)
    if not len(faces) or not len(boxes):
        return np.zeros(shape, bool), np.zeros(shape, bool)
    shared = overlaps(boxes, faces)
    claims = shared.argmax(axis=1)
    claiming = shared[np.arange(len(boxes)), claims] >= OVERLAP
    order = np.argsort(-scores, kind="stable")
    order = order[claiming[order]][::-1]
    # In reverse, so that of the detections of a face the one with the highest score is kept.
    first = np.full(len(faces), -1)
    first[claims[order]] = order
    right = np.zeros(len(boxes), bool)
    right[first[first >= 0]] = True
    on_counted = counted[:, claims]
    return right & on_counted, ~claiming | on_counted


def average_precision(
    scores: np.ndarray, hits: np.ndarray, proposals: np.ndarray, num_faces: int
) -> float:
    """AP of one setting from the matched detections of all images, in any order.

    Args:
        scores: float [n], of all images together.
        hits: bool [n], from `judge`.
        proposals: bool [n], from `judge`.
        num_faces: Number of faces that count.

    Returns:
        0 to 1; 0 if no face counts. If all scores are equal, the curve is a single point of
        precision and recall.
    """
    if not len(scores) or not num_faces:
        return 0.0
    step = first_threshold(scores)
    found = np.cumsum(np.bincount(step[hits], minlength=NUM_THRESHOLDS))
    taken = np.cumsum(np.bincount(step[proposals], minlength=NUM_THRESHOLDS))
    precision = found / np.maximum(taken, 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(found / num_faces, prepend=0.0) @ envelope)


def first_threshold(scores: np.ndarray) -> np.ndarray:
    """Index of the highest of `THRESHOLDS` that each score passes after rescaling to 0 ... 1.

    ``scores`` are float [n], of the complete set; the result is int64 [n], 0 to 999.
    """
    scores = np.asarray(scores, np.float64)
    low, high = scores.min(), scores.max()
    if low == high:
        return np.zeros(len(scores), np.int64)
    return np.searchsorted(-THRESHOLDS, -(scores - low) / (high - low)).astype(np.int64)


def _corners(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Near and far corners, float64 [2, n] each."""
    sides = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return sides[:2], sides[:2] + sides[2:]
