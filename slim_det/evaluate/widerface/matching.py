"""WIDER FACE AP from stored matches, for one evaluation or for many on the same images."""

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
    """The AP of easy, medium and hard, and their mean.

    The three settings take the place of IoU thresholds: bit s of a match belongs to setting s of
    `SETTINGS`. Scores are stretched to 0 ... 1 over the images that are scored together. Where
    the ground truth has more images than the data set, those of the data set count.

    Args:
        names: ``event/name`` of every image of the data set, at its ``im_id``.
        truth: A ground truth that has all of them.
        num_images: Take only so many images of the batches that are added. None for all; faces of
            images that no batch holds are then missed.
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
        """Take the faces of the next images.

        Args:
            batch: What ``EvalReader`` gives; ``im_id`` int [batch, 1].

        Raises:
            DataError: An image comes twice.
        """
        for name in self._names_in(batch):
            if self._is_full:
                return
            annotated = self._annotated.pop(name, None)
            if annotated is None:
                raise DataError(
                    f"EvalDataset: image '{name}' comes twice; expected each image once"
                )
            self._add(annotated, count_faces([annotated[1]]))

    def take(self, batch: dict[str, Any], found: Sequence[Detections]) -> list[ImageMatches]:
        """Add the images of a batch and judge what one model finds in them.

        Raises:
            DataError: An image comes twice, or a box or a score is not finite.
        """
        for name, boxes in zip(self._names_in(batch), found):
            require_finite(name, np.column_stack((boxes.boxes_xyxy, boxes.scores)))
        return super().take(batch, found)

    def match(self, index: int, found: Detections) -> ImageMatches:
        """Judge the boxes of one image in every setting.

        Args:
            index: The image, in the order in which it was added.
            found: Its boxes.

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
        """Mean AP of the settings; one in which no face counts has 0. See `ApScorer.scores`."""
        faces = self._num_objects(image_indices(matches, images, self.num_images))
        values = score_settings(matches, faces)
        ap = sum(values.values()) / len(values)
        return ApScores(ap, ap, values, notes_on(faces))

    def _names_in(self, batch: dict[str, Any]) -> list[str]:
        return [self._names[image] for image in np.asarray(batch["im_id"]).ravel().tolist()]


def match_faces(
    boxes_xywh: np.ndarray, scores: np.ndarray, faces: np.ndarray, counted: np.ndarray
) -> ImageMatches:
    """Judge the detections of one image; the arguments are those of `scoring.judge`."""
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
        matches: Of the images that are scored together, in any order.
        num_faces: Faces that count in each setting.
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
    """Faces of several images that count in each setting, from bool [3, n] of each image."""
    return sum((faces.sum(axis=1) for faces in counted), np.zeros(len(SETTINGS), np.int64))


def notes_on(num_faces: Sequence[int]) -> tuple[str, ...]:
    """What has to be said about settings in which no face counts."""
    empty = [setting for setting, count in zip(SETTINGS, num_faces) if not count]
    return (f"no face counts in {' and '.join(empty)}: AP 0",) if empty else ()


def require_finite(image: str, rows: np.ndarray) -> None:
    """Make sure that every number of the detections of an image is finite.

    Raises:
        DataError: One is not; the first detection.
    """
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise DataError(
            f"image '{image}': detection {np.argmin(finite)} has a box or score that is not finite"
        )
