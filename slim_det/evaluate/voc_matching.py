"""VOC mAP from stored matches: the same values as ppdet's, computed much faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slim_det.core.errors import ConfigError, DataError, nearest
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches, pool_by_class
from slim_det.evaluate.scorer import ApScorer, ApScores

OVERLAP = 0.5
"""IoU that a box must exceed."""

MAP_TYPES = ("11point", "integral")


@dataclass(frozen=True)
class _Objects:
    """The objects of one image, in pixels of the original image."""

    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray


class VocScorer(ApScorer):
    """Reproduces ppdet's ``VOCMetric`` with ``DetectionMAP``, excluding difficult objects.

    A box is assigned to the object of its class with the highest IoU (the first of ties). The
    first box assigned to an object with an IoU above `OVERLAP` is a true positive, later ones are
    false positives; boxes assigned to difficult objects are ignored. Matches have one bit and keep
    the order of the boxes. Equal scores are taken in image order. AP is the mean over the classes
    that have objects, 0 if none has.

    Args:
        num_classes: Number of classes of the detector.
        map_type: ``11point`` or ``integral``.
        num_images: Use only the first ``num_images`` images added; None for all.
        names: Class index -> name; by default the index itself.

    Raises:
        ConfigError: ``map_type`` is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        map_type: str = "11point",
        num_images: int | None = None,
        names: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(num_classes, num_images)
        self.name = metric_name(map_type)
        self._map_type = map_type
        self._names = names or {clsid: str(clsid) for clsid in range(num_classes)}

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the objects of the next images.

        Args:
            batch: Batch of ``EvalReader`` with ``collate_batch: false``: ``gt_bbox``,
                ``gt_class`` and ``difficult`` with one array per image, and ``scale_factor``
                float [batch, 2] (height, width), by which the reader has scaled the objects.
        """
        scales = np.asarray(batch["scale_factor"])
        columns = (batch["gt_bbox"], batch["gt_class"], batch["difficult"])
        for (height, width), boxes, classes, difficult in zip(scales, *columns):
            if self._is_full:
                return
            # Divide in the reader's precision, as ppdet does.
            boxes = np.asarray(boxes) / np.array([width, height, width, height])
            padding = (boxes == 0).all(axis=1)
            count = int(padding.argmax()) if padding.any() else len(boxes)
            objects = _Objects(
                boxes=boxes[:count],
                classes=np.asarray(classes).reshape(-1)[:count].astype(np.int64),
                difficult=np.asarray(difficult).reshape(-1)[:count] != 0,
            )
            self._require_known(objects.classes, "EvalDataset: an object", 0)
            counted = objects.classes[~objects.difficult]
            self._add(objects, np.bincount(counted, minlength=self._num_kinds))

    def _match(self, objects: _Objects, found: Detections) -> ImageMatches:
        classes = found.class_ids
        self._require_known(classes, "the detector: a box", -self._num_kinds)
        hits = np.zeros(len(found), np.uint16)
        ignored = np.zeros(len(found), np.uint16)
        if len(found) and len(objects.classes):
            item, box = np.nonzero(objects.classes[:, None] == classes)
            overlaps = np.zeros((len(objects.classes), len(found)))
            overlaps[item, box] = ppdet_overlaps(objects.boxes[item], found.boxes_xyxy[box])
            claims = overlaps.argmax(axis=0)
            claiming = overlaps[claims, np.arange(len(found))] > OVERLAP
            difficult = objects.difficult[claims]
            ignored[claiming & difficult] = 1
            # In reverse, so that the first box that claims an object is entered last and stays.
            right = np.flatnonzero(claiming & ~difficult)[::-1]
            first = dict(zip(claims[right].tolist(), right.tolist()))
            hits[list(first.values())] = 1
        # ppdet counts class -1 as a false positive of the last class: it indexes a list by class.
        classes = np.where(classes < 0, classes + self._num_kinds, classes).astype(np.int16)
        return ImageMatches(classes, found.scores.copy(), hits, ignored)

    def _score(
        self, matches: Sequence[ImageMatches], images: np.ndarray, num_objects: list[int]
    ) -> ApScores:
        ordered = [matches[i] for i in np.argsort(images, kind="stable")]
        pooled = pool_by_class(ordered, self._num_kinds)
        values = {
            clsid: average_precision(hits[ignored == 0], count, self._map_type)
            for clsid, ((hits, ignored), count) in enumerate(zip(pooled, num_objects))
            if count
        }
        ap = sum(values.values()) / len(values) if values else 0.0
        named = {name: values[clsid] for clsid, name in self._names.items() if clsid in values}
        return ApScores(ap, ap, named)

    def _require_known(self, classes: np.ndarray, what: str, lowest: int) -> None:
        wrong = classes[(classes < lowest) | (classes >= self._num_kinds)]
        if len(wrong):
            raise DataError(
                f"{what} has class {wrong[0]}; expected 0 to {self._num_kinds - 1} (num_classes)"
            )


def metric_name(map_type: str) -> str:
    """Name of the metric; ConfigError if ``map_type`` is unknown."""
    if map_type not in MAP_TYPES:
        raise ConfigError(f"map_type: '{map_type}' is unknown{nearest(map_type, MAP_TYPES)}")
    return f"voc_map_{map_type}"


def average_precision(hits: np.ndarray, num_objects: int, map_type: str) -> float:
    """AP of one class, computed like ppdet's ``DetectionMAP.accumulate``.

    Args:
        hits: 0 or 1 for every box, by descending score.
        num_objects: Number of objects of the class, at least 1.
        map_type: ``11point``: mean of the best precisions at recalls of at least 0, 0.1, ... 1
            (Everingham et al., 2010); ``integral``: sum of precision times recall increment.
    """
    found = np.cumsum(hits, dtype=np.int64)
    precision = found / np.arange(1, len(hits) + 1)
    recall = found / num_objects
    if map_type == "integral":
        steps = np.flatnonzero(hits)
        return float(precision[steps] @ np.diff(recall[steps], prepend=0.0))
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(recall, np.arange(11) / 10)].sum() / 11)


def ppdet_overlaps(objects: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Pairwise IoU of objects and boxes, bit-identical to ppdet's ``jaccard_overlap``.

    Sides are one pixel longer than the difference of the corners. If both edges of an
    intersection belong to the object, ppdet subtracts in the precision of the objects, otherwise
    in double precision; it adds the pixel in double precision.

    Args:
        objects: float [n, 4], xyxy in pixels.
        found: float32 [n, 4], in the same form.

    Returns:
        float64 [n]; 0 for pairs that do not touch, and where ppdet's value is negative because
        the corners of a box are swapped.
    """
    object_sides = (objects[:, 2:] - objects[:, :2]).T.astype(np.float64) + 1.0
    corners, found_corners = objects.T.astype(np.float64), found.T.astype(np.float64)
    object_low, object_high = corners[:2], corners[2:]
    low, high = found_corners[:2], found_corners[2:]
    sides = np.minimum(object_high, high) - np.maximum(object_low, low) + 1.0
    np.copyto(sides, object_sides, where=(object_low > low) & (object_high < high))
    sides[(low >= object_high) | (high <= object_low)] = 0.0
    shared, object_area = sides[0] * sides[1], object_sides[0] * object_sides[1]
    found_sides = high - low + 1.0
    found_area = found_sides[0] * found_sides[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.fmax(shared / (found_area + object_area - shared), 0.0)
