"""AP on WIDER FACE as ppdet's Trainer computes a metric."""

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
    """Takes the place of ppdet's ``WiderFaceMetric``, which computes no AP.

    Args:
        dataset: The parsed ``EvalDataset``.
        ground_truth: As `faces_of` takes it.
        detect: Used instead of the boxes that the Trainer gives, for evaluation at several scales.

    Raises:
        DataError: The ground truth is missing or malformed, or is of other images.
    """

    def __init__(
        self, dataset: Any, ground_truth: str | None = None, detect: Predict | None = None
    ) -> None:
        self._names, self._truth = faces_of(dataset, ground_truth)
        self._detect = detect
        self.reset()

    def reset(self) -> None:
        """Forget boxes and results."""
        self._scorer = FaceScorer(self._names, self._truth)
        self._matches: list[ImageMatches] = []
        self._scores: ApScores | None = None

    def update(self, data: dict[str, Any], outs: dict[str, Any]) -> None:
        """Judge the boxes of one batch: what the Trainer gives under ``bbox`` and ``bbox_num``."""
        found = self._detect(data) if self._detect else parse_detections(outs)
        self._matches += self._scorer.take(data, found)

    def accumulate(self) -> None:
        """Score everything judged since the last reset."""
        self._scores = self._scorer.scores(self._matches)
        for note in self._scores.notes:
            logger.warning("%s", note)

    def log(self) -> None:
        """One line."""
        if self._scores is None:
            return
        values = ", ".join(f"{name} {value:.4f}" for name, value in self._scores.per_class.items())
        logger.info(
            "%s %.4f (%s; %s)", self._scorer.name, self._scores.ap, values, self._scorer.bands
        )

    def get_results(self) -> dict[str, list[float]]:
        """``widerface``: mean, easy, medium, hard; fractions."""
        if self._scores is None:
            return {}
        return {"widerface": [self._scores.ap, *self._scores.per_class.values()]}
