"""Base class of the metrics' scorers.

A scorer works in two steps, so that many models can be evaluated on the same images: it matches
the detections of each image with its ground truth, which is prepared once, and then computes AP
from the matches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches, image_indices


@dataclass(frozen=True)
class ApScores:
    """Metric values of one model; fractions are 0 to 1.

    Attributes:
        ap: The metric itself.
        ap50: AP at IoU 0.5.
        per_class: Class name -> value, without classes that have no objects; for WIDER FACE the
            settings easy, medium and hard.
        notes: Explanations of values that are 0.
    """

    ap: float
    ap50: float
    per_class: dict[str, float]
    notes: tuple[str, ...] = ()


class ApScorer(ABC):
    """Matches detections with the ground truth of images, and scores the matches.

    Args:
        num_kinds: Number of kinds of objects counted separately: classes, or settings of WIDER
            FACE.
        num_images: Use only the first ``num_images`` images added; None for all.

    Attributes:
        name: ``coco_ap``, ``voc_map_11point``, ``voc_map_integral`` or ``widerface_ap``.
        bands: For WIDER FACE, how the settings are defined and how many images are evaluated.
    """

    name: str
    bands: str | None = None

    def __init__(self, num_kinds: int, num_images: int | None) -> None:
        self._num_kinds = num_kinds
        self._limit = num_images
        self._truth: list[Any] = []
        self._counts: list[np.ndarray] = []
        self._missed: np.ndarray | None = None

    @property
    def num_images(self) -> int:
        """Number of images added so far."""
        return len(self._truth)

    @abstractmethod
    def add_batch(self, batch: dict[str, Any]) -> None:
        """Add the ground truth of the images in a batch of ``EvalReader``.

        Raises:
            DataError: An image occurs twice or has no ground truth, or an object's class is
                unknown.
        """

    def match(self, index: int, found: Detections) -> ImageMatches:
        """Match the detections of one image with its objects.

        Args:
            index: Position of the image in the order in which images were added.
            found: Its detections.

        Raises:
            DataError: A box has an unknown class.
            ValueError: The image was not added.
        """
        if not 0 <= index < self.num_images:
            raise ValueError(f"image {index} requested; {self.num_images} images were added")
        return self._match(self._truth[index], found)

    def scores(
        self, matches: Sequence[ImageMatches], images: Sequence[int] | None = None
    ) -> ApScores:
        """Compute the metric values of one model; the order of its matches does not matter.

        Args:
            matches: Matches of one model.
            images: Image index of each element of ``matches``. An image may occur several times;
                its objects then count as often. None for every image, in order.

        Raises:
            ValueError: ``images`` and ``matches`` differ in length, or an image is unknown.
        """
        chosen = image_indices(matches, images, self.num_images)
        times = np.bincount(chosen, minlength=self.num_images)
        counts: np.ndarray = times @ np.reshape(self._counts, (-1, self._num_kinds))
        if self._missed is not None:
            counts = counts + self._missed
        return self._score(matches, chosen, counts.astype(int).tolist())

    def ap(self, matches: Sequence[ImageMatches], images: Sequence[int] | None = None) -> float:
        """The metric alone; see `scores`."""
        return self.scores(matches, images).ap

    def take(self, batch: dict[str, Any], found: Sequence[Detections]) -> list[ImageMatches]:
        """Add the images of a batch and match one model's detections with them."""
        start = self.num_images
        self.add_batch(batch)
        return [self.match(index, boxes) for index, boxes in enumerate(found, start)]

    @abstractmethod
    def _match(self, objects: Any, found: Detections) -> ImageMatches:
        """Match detections with the objects of their image, as given to `_add`."""

    @abstractmethod
    def _score(
        self, matches: Sequence[ImageMatches], images: np.ndarray, num_objects: list[int]
    ) -> ApScores:
        """Score matches, given the image index of each and the number of objects of each kind."""

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and self.num_images >= self._limit

    def _expect(self, counts: np.ndarray) -> None:
        """Count all objects as missed until a batch contains their image."""
        if self._limit is None:
            self._missed = counts

    def _add(self, objects: Any, counts: np.ndarray) -> None:
        """Add an image: its objects, and how many of each kind count."""
        self._truth.append(objects)
        self._counts.append(counts)
        if self._missed is not None:
            self._missed = self._missed - counts
