"""WIDER FACE AP as a metric of ppdet's Trainer."""

from __future__ import annotations

import logging
from typing import Any

from ppdet.metrics.metrics import Metric

from slim_det.evaluate.detections import Predict, parse_detections
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.scorer import ApScores
from slim_det.evaluate.widerface.matching import FaceScorer
from slim_det.evaluate.widerface.truth import faces_of

logger = logging.getLogger("slim_det")


class FaceMetric(Metric):
    """Replaces ppdet's ``WiderFaceMetric``, which computes no AP.

    Args:
        dataset: The parsed ``EvalDataset``.
        ground_truth: See `faces_of`.
        detect: Predictor used instead of the Trainer's detections, for multi-scale evaluation.

    Raises:
        DataError: The ground truth is missing, malformed or does not belong to these images.
    """

    def __init__(
        self, dataset: Any, ground_truth: str | None = None, detect: Predict | None = None
    ) -> None:
        self._names, self._truth = faces_of(dataset, ground_truth)
        self._detect = detect
        self.reset()

    def reset(self) -> None:
        """Discard all matches and results."""
        self._scorer = FaceScorer(self._names, self._truth)
        self._matches: list[ImageMatches] = []
        self._scores: ApScores | None = None

    def update(self, data: dict[str, Any], outs: dict[str, Any]) -> None:
        """Match the detections of one batch, by default the Trainer's ``bbox`` and ``bbox_num``."""
        found = self._detect(data) if self._detect else parse_detections(outs)
        self._matches += self._scorer.take(data, found)

    def accumulate(self) -> None:
        """Score all matches since the last reset."""
        self._scores = self._scorer.scores(self._matches)
        for note in self._scores.notes:
            logger.warning("%s", note)

    def log(self) -> None:
        """Log the result in one line."""
        if self._scores is None:
            return
        values = ", ".join(f"{name} {value:.4f}" for name, value in self._scores.per_class.items())
        logger.info(
            "%s %.4f (%s; %s)", self._scorer.name, self._scores.ap, values, self._scorer.bands
        )

    def get_results(self) -> dict[str, list[float]]:
        """AP under ``widerface``: mean, easy, medium, hard; fractions."""
        if self._scores is None:
            return {}
        return {"widerface": [self._scores.ap, *self._scores.per_class.values()]}
