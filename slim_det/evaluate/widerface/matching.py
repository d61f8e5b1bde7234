"""WIDER FACE AP from stored matches, for one or many evaluations on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim_det.core.errors import DataError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.scorer import ApScorer, ApScores
from slim_det.evaluate.widerface.files import xywh_of
from slim_det.evaluate.widerface.scoring import SETTINGS, average_precision, judge
from slim_det.evaluate.widerface.truth import GroundTruth

_BITS = np.uint16(1) << np.arange(len(SETTINGS), dtype=np.uint16)


class FaceScorer(ApScorer):
    """AP of easy, medium and hard, and their mean.

    The three settings take the place of IoU thresholds: bit s of a match belongs to setting s of
    `SETTINGS`, and every class is 0. Matches keep the order of the boxes. Scores are rescaled to
    0 ... 1 over the images that are scored together. A setting without faces has AP 0. If the
    ground truth has more images than the data set, only those of the data set count.

    Args:
        names: ``event/name`` of every image of the data set, indexed by ``im_id``.
        truth: Ground truth that contains all of these images.
        num_images: Use only the first ``num_images`` images added. None for all; faces of images
            that are never added then count as missed.
    """

    name = "widerface_ap"

    def __init__(
        self, names: Sequence[str], truth: GroundTruth, num_images: int | None = None
    ) -> None:
        super().__init__(len(SETTINGS), num_images)
        faces = dict(zip(truth.names, zip(truth.faces, truth.counted)))
        self._names = names
        self._annotated = {name: faces[name] for name in names}
        nothing = np.zeros(len(SETTINGS), np.int64)
        self._expect(sum((counted.sum(axis=1) for _, counted in self._annotated.values()), nothing))
        self.bands = truth.bands
        if len(names) < len(truth.names):
            self.bands += f", {len(names)} of {len(truth.names)} images"

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the faces of the images ``im_id`` of a batch; see `ApScorer.add_batch`."""
        for name in self._names_in(batch):
            if self._is_full:
                return
            if name not in self._annotated:
                raise DataError(
                    f"EvalDataset: image '{name}' occurs twice; expected each image once"
                )
            self._add_image(name)

    def take(self, batch: dict[str, Any], found: Sequence[Detections]) -> list[ImageMatches]:
        """Add the images of a batch and match one model's detections, which must be finite."""
        for name, boxes in zip(self._names_in(batch), found):
            _require_finite(name, np.column_stack((boxes.boxes_xyxy, boxes.scores)))
        return super().take(batch, found)

    def add_rows(self, name: str, rows: np.ndarray) -> ImageMatches:
        """Add one image by name and match its detections.

        Args:
            name: ``event/name`` of an image of the data set that was not added before.
            rows: float [n, 5]: x y w h in pixels, score.

        Raises:
            DataError: A number is not finite.
        """
        _require_finite(name, rows)
        return _match_rows(rows[:, :4], rows[:, 4].copy(), *self._add_image(name))

    def _match(self, objects: tuple[np.ndarray, np.ndarray], found: Detections) -> ImageMatches:
        rows = xywh_of(np.column_stack((found.boxes_xyxy, found.scores)))
        return _match_rows(rows[:, :4], found.scores.copy(), *objects)

    def _score(
        self, matches: Sequence[ImageMatches], images: np.ndarray, num_objects: list[int]
    ) -> ApScores:
        scores, hits, ignored = (
            np.concatenate([np.zeros(0, kind), *(getattr(m, name) for m in matches)])
            for name, kind in (("scores", np.float32), ("hits", np.uint16), ("ignored", np.uint16))
        )
        values = {
            setting: average_precision(scores, (hits & bit) > 0, (ignored & bit) == 0, count)
            for setting, bit, count in zip(SETTINGS, _BITS, num_objects)
        }
        ap = sum(values.values()) / len(values)
        empty = [setting for setting, count in zip(SETTINGS, num_objects) if not count]
        notes = (f"no face counts in {' and '.join(empty)}: AP 0",) if empty else ()
        return ApScores(ap, ap, values, notes)

    def _add_image(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        faces, counted = self._annotated.pop(name)
        self._add((faces, counted), counted.sum(axis=1))
        return faces, counted

    def _names_in(self, batch: dict[str, Any]) -> list[str]:
        return [self._names[image] for image in np.asarray(batch["im_id"]).ravel().tolist()]


def _match_rows(
    boxes_xywh: np.ndarray, scores: np.ndarray, faces: np.ndarray, counted: np.ndarray
) -> ImageMatches:
    hits, proposals = judge(boxes_xywh, scores, faces, counted)
    return ImageMatches(
        np.zeros(len(scores), np.int16),
        scores,
        (_BITS @ hits).astype(np.uint16),
        (_BITS @ ~proposals).astype(np.uint16),
    )


def _require_finite(image: str, rows: np.ndarray) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(
            f"image '{image}': detection {np.argmin(finite)} has a box or score that is not finite"
        )
