"""COCO box AP from stored matches: the same values as pycocotools', computed much faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import Params

from slim_det.core.errors import DataError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches, pool_by_class
from slim_det.evaluate.scorer import ApScorer, ApScores

_PARAMS = Params("bbox")
THRESHOLDS = _PARAMS.iouThrs
RECALLS = _PARAMS.recThrs
MAX_BOXES = _PARAMS.maxDets[-1]
"""Maximum number of boxes evaluated per class and image."""
LOWEST_AREA, HIGHEST_AREA = _PARAMS.areaRng[0]

NO_BOXES = "no boxes were found at all: AP is 0"

_ALL = (1 << len(THRESHOLDS)) - 1


@dataclass(frozen=True)
class _Objects:
    """The objects of one image; ``boxes`` are xywh in pixels."""

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray
    ids: np.ndarray


class CocoScorer(ApScorer):
    """Reproduces pycocotools' ``COCOeval``: 10 IoU thresholds, all areas, 100 boxes per class.

    In order of descending score, each box takes the unmatched object of its class with the highest
    IoU (the last of ties). Ignored objects come after all others, and a crowd can be matched any
    number of times. Boxes of a negative class are dropped, as are those after the 100 best of a
    class; NaN overlaps nothing. Matches have ten bits and are sorted by descending score. Equal
    scores are taken in the order of the image ids. AP is the mean over the classes that have
    objects, 0 if none has.

    Args:
        truth: pycocotools' ``COCO`` of the annotation file.
        catid2clsid: Category id -> class index of the detector.
        num_images: Use only the first ``num_images`` images added. None for all; objects of images
            that are never added (such as missing files) then count as missed.

    Raises:
        DataError: An annotation has no box or area.
    """

    name = "coco_ap"

    def __init__(
        self, truth: Any, catid2clsid: dict[int, int], num_images: int | None = None
    ) -> None:
        super().__init__(max(catid2clsid.values(), default=-1) + 1, num_images)
        self._annotated = {
            image: _read_objects(truth, image, catid2clsid) for image in truth.getImgIds()
        }
        self._ids: list[int] = []
        with_objects = {entry["category_id"] for entry in truth.anns.values()}
        self._names = {
            clsid: truth.cats[catid]["name"]
            for catid, clsid in catid2clsid.items()
            if catid in with_objects
        }
        nothing = np.zeros(self._num_kinds, np.int64)
        self._expect(sum(map(self._count, self._annotated.values()), nothing))

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the objects of the images ``im_id`` of a batch; see `ApScorer.add_batch`."""
        for image in np.asarray(batch["im_id"]).reshape(-1).tolist():
            if self._is_full:
                return
            if image not in self._annotated:
                wrong = "occurs twice" if image in self._ids else "is not in the annotation file"
                raise DataError(f"EvalDataset: image {image} {wrong}; expected each image once")
            objects = self._annotated.pop(image)
            self._ids.append(image)
            self._add(objects, self._count(objects))

    def _match(self, objects: _Objects, found: Detections) -> ImageMatches:
        found = self._best(found)
        classes = found.class_ids.astype(np.int16)
        sides = found.boxes_xyxy.astype(np.float64)
        sides[:, 2:] -= sides[:, :2]
        hits, ignored = _assign(sides, classes, objects)
        area = sides[:, 2] * sides[:, 3]
        outside = (area < LOWEST_AREA) | (area > HIGHEST_AREA)
        ignored[outside] |= _ALL & ~hits[outside]
        return ImageMatches(classes, found.scores, hits, ignored)

    def _score(
        self, matches: Sequence[ImageMatches], images: np.ndarray, num_objects: list[int]
    ) -> ApScores:
        ids = np.asarray(self._ids, np.int64)[images]
        ordered = [matches[i] for i in np.argsort(ids, kind="stable")]
        pooled = pool_by_class(ordered, self._num_kinds)
        precisions = {
            clsid: recalled_precision(hits, ignored, count)
            for clsid, ((hits, ignored), count) in enumerate(zip(pooled, num_objects))
            if count
        }
        values = {clsid: float(np.mean(table)) for clsid, table in precisions.items()}
        return ApScores(
            ap=float(np.mean(list(values.values()))) if values else 0.0,
            ap50=float(np.mean([table[0] for table in precisions.values()])) if values else 0.0,
            per_class={name: values.get(clsid, 0.0) for clsid, name in self._names.items()},
            notes=() if any(len(m.scores) for m in matches) else (NO_BOXES,),
        )

    def _count(self, objects: _Objects) -> np.ndarray:
        """Number of objects of each class that are not ignored."""
        return np.bincount(objects.classes[~objects.ignored], minlength=self._num_kinds)

    def _best(self, found: Detections) -> Detections:
        """The boxes that are evaluated, by descending score."""
        classes = found.class_ids
        if len(classes) and classes.max() >= self._num_kinds:
            raise DataError(
                f"the detector: a box has class {classes.max()}; the annotation file has "
                f"{self._num_kinds} categories"
            )
        order = np.argsort(-found.scores, kind="stable")
        order = order[classes[order] >= 0]
        if len(order) > MAX_BOXES:
            ranked = classes[order]
            kept = [np.flatnonzero(ranked == c)[:MAX_BOXES] for c in np.unique(ranked)]
            order = order[np.sort(np.concatenate(kept))]
        return found[order]


def recalled_precision(hits: np.ndarray, ignored: np.ndarray, num_objects: int) -> np.ndarray:
    """Precision of one class at 10 IoU thresholds and 101 recalls; its mean is AP.

    The precision at a recall is the best one at that recall or above, and 0 beyond the last.

    Args:
        hits: uint16 [n], bit t for a true positive at threshold t; by descending score.
        ignored: uint16 [n], bit t for a box that is ignored at threshold t.
        num_objects: Number of objects of the class, at least 1.

    Returns:
        float64 [10, 101].
    """
    bits = np.arange(len(THRESHOLDS))[:, None]
    right = np.cumsum(hits >> bits & 1, axis=1).astype(np.float64)
    wrong = np.cumsum(~(hits | ignored) >> bits & 1, axis=1).astype(np.float64)
    precision = right / (wrong + right + np.spacing(1))
    best = np.zeros((len(bits), len(hits) + 1))
    best[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / num_objects
    return np.stack([b[np.searchsorted(r, RECALLS)] for b, r in zip(best, recall)])


def _assign(
    boxes: np.ndarray, classes: np.ndarray, objects: _Objects
) -> tuple[np.ndarray, np.ndarray]:
    """Match xywh boxes, sorted by descending score, with objects: the hit and ignored bits.

    Each pair is visited once for all thresholds: the thresholds at which the box is still
    unmatched are intersected with those at which the object is.
    """
    hits, ignored = [0] * len(boxes), [0] * len(boxes)
    if len(boxes) and len(objects.boxes):
        overlaps = np.asarray(mask_utils.iou(boxes, objects.boxes, objects.crowd))
        near = (overlaps >= THRESHOLDS[0]) & (classes[:, None] == objects.classes)
        box, item = np.nonzero(near)
        overlap = overlaps[box, item]
        order = np.lexsort((-item, -overlap, objects.ignored[item], box))
        reached = (1 << np.searchsorted(THRESHOLDS, overlap[order], side="right")) - 1
        free, taken = [_ALL] * len(boxes), [0] * len(objects.boxes)
        crowd, left_out = objects.crowd.tolist(), objects.ignored.tolist()
        # pycocotools takes id 0 for "no match": the object is matched, but yields no hit.
        nameless = (objects.ids == 0).tolist()
        for b, i, bits in zip(box[order].tolist(), item[order].tolist(), reached.tolist()):
            new = bits & free[b] & ~taken[i]
            free[b] &= ~new
            if not crowd[i]:
                taken[i] |= new
            if left_out[i]:
                ignored[b] |= new
            elif not nameless[i]:
                hits[b] |= new
    return np.array(hits, np.uint16), np.array(ignored, np.uint16)


def _read_objects(truth: Any, image: int, catid2clsid: dict[int, int]) -> _Objects:
    """The annotations of one image, in the order of the file, without unknown categories."""
    entries = truth.loadAnns(truth.getAnnIds(imgIds=[image]))
    entries = [entry for entry in entries if entry["category_id"] in catid2clsid]
    for entry in entries:
        for key in ("bbox", "area"):
            if key not in entry:
                raise DataError(f"annotation {entry['id']} of image {image} has no '{key}'")
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in entries], bool)
    area = np.array([entry["area"] for entry in entries], np.float64)
    return _Objects(
        boxes=np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        classes=np.array([catid2clsid[entry["category_id"]] for entry in entries], np.int64),
        crowd=crowd.astype(np.uint8),
        ignored=crowd | (area < LOWEST_AREA) | (area > HIGHEST_AREA),
        ids=np.array([entry["id"] for entry in entries], np.int64),
    )
