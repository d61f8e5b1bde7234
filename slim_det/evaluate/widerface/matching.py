"""WIDER FACE AP from stored matches, for one or many evaluations on the same images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from slim_det.core.errors import DataError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches, image_indices, known_image
from slim_det.evaluate.scorer import ApScorer, ApScores
from slim_det.evaluate.widerface.files import xywh_of
from slim_det.evaluate.widerface.scoring import SETTINGS, average_precision, judge
from slim_det.evaluate.widerface.truth import GroundTruth

_BITS = np.uint16(1) << np.arange(len(SETTINGS), dtype=np.uint16)


class FaceScorer(ApScorer):
    """AP of easy, medium and hard, and their mean.

    The three settings take the place of IoU thresholds: bit s of a match belongs to setting s of
    `SETTINGS`. Scores are rescaled to 0 ... 1 over the images that are scored together. If the
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
        self._expect(count_faces(counted for _, counted in self._annotated.values()))
        self.bands = truth.bands
        if len(names) < len(truth.names):
            self.bands += f", {len(names)} of {len(truth.names)} images"

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the faces of the next images.

        Args:
            batch: Batch of ``EvalReader``; ``im_id`` int [batch, 1].

        Raises:
            DataError: An image occurs twice.
        """
        for name in self._names_in(batch):
            if self._is_full:
                return
            annotated = self._annotated.pop(name, None)
            if annotated is None:
                raise DataError(
                    f"EvalDataset: image '{name}' occurs twice; expected each image once"
                )
            self._add(annotated, count_faces([annotated[1]]))

    def take(self, batch: dict[str, Any], found: Sequence[Detections]) -> list[ImageMatches]:
        """Add the images of a batch and match one model's detections with them.

        Raises:
            DataError: An image occurs twice, or a box or a score is not finite.
        """
        for name, boxes in zip(self._names_in(batch), found):
            require_finite(name, np.column_stack((boxes.boxes_xyxy, boxes.scores)))
        return super().take(batch, found)

    def match(self, index: int, found: Detections) -> ImageMatches:
        """Match the detections of one image with its faces in every setting.

        Args:
            index: Position of the image in the order in which images were added.
            found: Its detections.

        Returns:
            Matches with a bit for each setting, in the order of the boxes; the class is 0.

        Raises:
            ValueError: The image was not added.
        """
        faces, counted = known_image(self._truth, index)
        rows = xywh_of(np.column_stack((found.boxes_xyxy, found.scores)))
        return match_faces(rows[:, :4], found.scores.copy(), faces, counted)

    def scores(
        self, matches: Sequence[ImageMatches], images: Sequence[int] | None = None
    ) -> ApScores:
        """Mean AP of the settings; 0 for a setting without faces. See `ApScorer.scores`."""
        faces = self._num_objects(image_indices(matches, images, self.num_images))
        values = score_settings(matches, faces)
        ap = sum(values.values()) / len(values)
        return ApScores(ap, ap, values, notes_on(faces))

    def _names_in(self, batch: dict[str, Any]) -> list[str]:
        return [self._names[image] for image in np.asarray(batch["im_id"]).ravel().tolist()]


def match_faces(
    boxes_xywh: np.ndarray, scores: np.ndarray, faces: np.ndarray, counted: np.ndarray
) -> ImageMatches:
    """Match the detections of one image with its faces; for the arguments see `scoring.judge`."""
    hits, proposals = judge(boxes_xywh, scores, faces, counted)
    return ImageMatches(
        np.zeros(len(scores), np.int16),
        scores,
        (_BITS @ hits).astype(np.uint16),
        (_BITS @ ~proposals).astype(np.uint16),
    )


def score_settings(matches: Sequence[ImageMatches], num_faces: Sequence[int]) -> dict[str, float]:
    """AP of every setting.

    Args:
        matches: Matches of the images that are scored together, in any order.
        num_faces: Number of faces that count in each setting.
    """
    scores, hits, ignored = (
        np.concatenate([np.zeros(0, kind), *(getattr(m, name) for m in matches)])
        for name, kind in (("scores", np.float32), ("hits", np.uint16), ("ignored", np.uint16))
    )
    return {
        setting: average_precision(scores, (hits & bit) > 0, (ignored & bit) == 0, count)
        for setting, bit, count in zip(SETTINGS, _BITS, num_faces)
    }


def count_faces(counted: Iterable[np.ndarray]) -> np.ndarray:
    """Number of faces that count in each setting, from bool [3, n] per image."""
    return sum((faces.sum(axis=1) for faces in counted), np.zeros(len(SETTINGS), np.int64))


def notes_on(num_faces: Sequence[int]) -> tuple[str, ...]:
    """Notes about settings in which no face counts."""
    empty = [setting for setting, count in zip(SETTINGS, num_faces) if not count]
    return (f"no face counts in {' and '.join(empty)}: AP 0",) if empty else ()


def require_finite(image: str, rows: np.ndarray) -> None:
    """Check that all boxes and scores of an image are finite.

    Raises:
        DataError: One is not; the message names the first such detection.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(
            f"image '{image}': detection {np.argmin(finite)} has a box or score that is not finite"
        )
