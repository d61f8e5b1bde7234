"""WIDER FACE AP from detection files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.core.errors import DataError, nearest
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.widerface.files import read_predictions
from slim_det.evaluate.widerface.matching import FaceScorer
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
        num_images: Number of images evaluated.
        seconds: Time spent on matching and scoring, without reading files.
        bands: ``official``, or the height bands used in place of the official lists.
    """

    easy: float
    medium: float
    hard: float
    num_images: int
    seconds: float
    bands: str

    def as_dict(self) -> dict[str, Any]:
        """The result as a dict with its JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """One human-readable line."""
        values = ", ".join(f"{setting} {getattr(self, setting):.4f}" for setting in SETTINGS)
        return (
            f"WIDER FACE AP ({self.bands}): {values} on {self.num_images} images; "
            f"{self.seconds:.1f} s"
        )


def score_predictions(
    truth: GroundTruth, found: Iterable[tuple[str, np.ndarray]]
) -> WiderFaceResult:
    """Compute the AP of detections that are given image by image, in any order.

    A setting in which no face counts has AP 0 and is logged as a warning.

    Args:
        truth: Ground truth; images missing from ``found`` count as images without detections.
        found: ``event/name`` of an image, and float [n, 5]: x y w h in pixels, score.

    Raises:
        DataError: An image is unknown or occurs twice, or a number is not finite.
    """
    scorer = FaceScorer(truth.names, truth)
    known = frozenset(truth.names)
    matches: dict[str, ImageMatches] = {}
    seconds = 0.0
    for name, rows in found:
        start = time.perf_counter()
        if name not in known:
            raise DataError(
                f"image '{name}' is not in the ground truth{nearest(name, truth.names)}"
            )
        if name in matches:
            raise DataError(f"image '{name}' is given twice; expected each image once")
        matches[name] = scorer.add_rows(name, rows)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    scores = scorer.scores(list(matches.values()))
    seconds += time.perf_counter() - start
    for note in scores.notes:
        logger.warning("%s", note)
    return WiderFaceResult(
        **scores.per_class, num_images=len(truth.names), seconds=seconds, bands=truth.bands
    )


def evaluate_folder(predictions: str | Path, ground_truth: str | Path) -> WiderFaceResult:
    """Compute the AP of stored detections; see `read_predictions` and `read_ground_truth`."""
    truth = read_ground_truth(ground_truth)
    return score_predictions(truth, read_predictions(predictions, truth.names))
