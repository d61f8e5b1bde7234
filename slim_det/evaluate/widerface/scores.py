"""AP on WIDER FACE from files of detections."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.core.errors import DataError, nearest
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.widerface.files import ROW_LENGTH, read_predictions, xywh_of
from slim_det.evaluate.widerface.matching import (
    count_faces,
    match_faces,
    notes_on,
    require_finite,
    score_settings,
)
from slim_det.evaluate.widerface.scoring import SETTINGS
from slim_det.evaluate.widerface.truth import GroundTruth, read_ground_truth

logger = logging.getLogger("slim_det")


@dataclass(frozen=True)
class WiderFaceResult:
    """AP of the three settings; fractions are 0 to 1.

    Attributes:
        easy: AP of the easy setting.
        medium: AP of the medium setting.
        hard: AP of the hard setting.
        num_images: Images whose faces were looked for.
        seconds: Spent on judging and counting, reading of files aside.
        bands: ``official``, or the heights that stand in for the official lists.
    """

    easy: float
    medium: float
    hard: float
    num_images: int
    seconds: float
    bands: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the keys are the attributes."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        values = ", ".join(f"{setting} {getattr(self, setting):.4f}" for setting in SETTINGS)
        return (
            f"WIDER FACE AP ({self.bands}): {values} on {self.num_images} images; "
            f"{self.seconds:.1f} s"
        )


class WiderFaceAp:
    """Judges the detections of one image after another, then gives AP.

    Each image is judged at once; what stays in memory is 14 bytes a detection. Images may come in
    any order, and those that never come count as images without detections::

        metric = WiderFaceAp(read_ground_truth("ground_truth"))
        for path in images:
            metric.update(image_key(path, image_dir), boxes_xyxy_score)
        print(metric.accumulate())

    Args:
        ground_truth: As `read_ground_truth` gives it.
    """

    def __init__(self, ground_truth: GroundTruth) -> None:
        self._truth = ground_truth
        self._index = {name: i for i, name in enumerate(ground_truth.names)}
        self._matches: dict[int, ImageMatches] = {}
        self._seconds = 0.0

    @property
    def num_updated(self) -> int:
        """Images whose detections have come."""
        return len(self._matches)

    def update(self, image: str | int, boxes_xyxy_score: np.ndarray) -> None:
        """Take the detections of one image as corners; ppdet's ``w = xmax - xmin + 1`` is applied.

        Args:
            image: ``event/name`` without suffix (`image_key`), or the index in the
                ground truth.
            boxes_xyxy_score: float [n, 5], pixels of the original image; n may be 0.

        Raises:
            DataError: The image is unknown or came before, or a number is not finite.
        """
        self.update_xywh(image, xywh_of(boxes_xyxy_score))

    def update_xywh(self, image: str | int, boxes_xywh_score: np.ndarray) -> None:
        """Take the detections of one image as they stand in the files of detections.

        Args:
            image: As in `update`.
            boxes_xywh_score: float [n, 5]: x y w h in pixels of the original image, score.

        Raises:
            DataError: As in `update`.
        """
        start = time.perf_counter()
        index = self._index_of(image)
        name = self._truth.names[index]
        rows = np.asarray(boxes_xywh_score, np.float64).reshape(-1, ROW_LENGTH)
        if index in self._matches:
            raise DataError(f"image '{name}' has been given twice; expected each image once")
        require_finite(name, rows)
        self._matches[index] = match_faces(
            rows[:, :4], rows[:, 4].copy(), self._truth.faces[index], self._truth.counted[index]
        )
        self._seconds += time.perf_counter() - start

    def accumulate(self, only_updated: bool = False) -> WiderFaceResult:
        """AP of all that has come so far.

        Args:
            only_updated: Count only the faces of images that have come, for an evaluation of a part
                of the set. Otherwise every face of the ground truth counts.

        Returns:
            The result. A setting in which no face counts has AP 0 and a line in the log.
        """
        start = time.perf_counter()
        expected = list(self._matches) if only_updated else range(len(self._truth.names))
        faces = count_faces(self._truth.counted[i] for i in expected).tolist()
        for note in notes_on(faces):
            logger.warning("%s", note)
        values = score_settings(list(self._matches.values()), faces)
        self._seconds += time.perf_counter() - start
        return WiderFaceResult(
            **values,
            num_images=len(expected),
            seconds=self._seconds,
            bands=self._truth.bands,
        )

    def _index_of(self, image: str | int) -> int:
        names = self._truth.names
        if isinstance(image, str):
            if image not in self._index:
                raise DataError(
                    f"image '{image}' is not in the ground truth{nearest(image, names)}"
                )
            return self._index[image]
        if not 0 <= image < len(names):
            raise DataError(
                f"image {image} is not in the ground truth; expected 0 to {len(names) - 1}"
            )
        return int(image)


def evaluate_folder(predictions: str | Path, ground_truth: str | Path) -> WiderFaceResult:
    """AP of detections that lie in files.

    Args:
        predictions: Folder with `EVENT/NAME.txt`, as `read_predictions` takes it.
        ground_truth: The official folder of `.mat` files, or a text file.

    Raises:
        DataError: Either is missing or malformed.
    """
    truth = read_ground_truth(ground_truth)
    metric = WiderFaceAp(truth)
    for name, rows in read_predictions(predictions, truth.names):
        metric.update_xywh(name, rows)
    return metric.accumulate()
