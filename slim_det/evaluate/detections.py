"""The detections of one image, and the parser of NMS output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slim_det.core.errors import ExportError

_ROW_LENGTH = 6
"""Row length of NMS output: class, score, xyxy."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes detected in one image, in the detector's order.

    Attributes:
        boxes_xyxy: float32 [n, 4], corners in pixels of the original image.
        scores: float32 [n].
        class_ids: int64 [n]; negative if a box has no class.

    Raises:
        ValueError: The boxes are not [n, 4], or scores and classes are not [n].
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray

    def __post_init__(self) -> None:
        kinds = {"boxes_xyxy": np.float32, "scores": np.float32, "class_ids": np.int64}
        for name, kind in kinds.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), kind))
        count = len(self.boxes_xyxy)
        shapes = [self.boxes_xyxy.shape, self.scores.shape, self.class_ids.shape]
        if shapes != [(count, 4), (count,), (count,)]:
            raise ValueError(
                f"boxes, scores and classes have the shapes {shapes}; expected [n, 4], [n], [n]"
            )

    @classmethod
    def empty(cls) -> Detections:
        """Detections of an image in which nothing was found."""
        return cls.from_rows(np.zeros((0, _ROW_LENGTH)))

    @classmethod
    def from_rows(cls, rows: np.ndarray) -> Detections:
        """Detections from the rows of Paddle's NMS: float [n, 6], class, score, xyxy."""
        return cls(rows[:, 2:], rows[:, 1], rows[:, 0])

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | np.ndarray) -> Detections:
        """A subset of the boxes, selected by a slice, a mask or indices."""
        return Detections(self.boxes_xyxy[chosen], self.scores[chosen], self.class_ids[chosen])


Predict = Callable[[dict[str, Any]], "list[Detections]"]
"""Maps one batch of a ppdet reader to the detections of each of its images."""


def parse_detections(outputs: Mapping[str, Any]) -> list[Detections]:
    """Parse the outputs of a ppdet model into the detections of each image of a batch.

    Args:
        outputs: ``bbox`` float [N, 6] (class, score, xyxy in pixels of the original image) and
            ``bbox_num`` int [batch]. If no image of the batch has a box, Paddle's NMS returns a
            single row that holds only -1.
    """
    rows, counts = np.asarray(outputs["bbox"]), np.asarray(outputs["bbox_num"]).ravel()
    if rows.shape[-1] != _ROW_LENGTH:
        return [Detections.empty() for _ in counts]
    found, ends = Detections.from_rows(rows), np.cumsum(counts)
    return [found[end - count : end] for end, count in zip(ends, counts)]


def parse_arrays(arrays: Iterable[Any], source: str) -> list[Detections]:
    """Parse the unnamed outputs of an inference engine into detections.

    Args:
        arrays: In any order. The first array with two axes holds the boxes, the first with one
            axis the number of boxes per image.
        source: What produced them, for the error message.

    Raises:
        ExportError: One of the two is missing.
    """
    given = [np.asarray(array) for array in arrays]
    rows, counts = (next((a for a in given if a.ndim == axes), None) for axes in (2, 1))
    if rows is None or counts is None:
        raise ExportError(f"{source} outputs no boxes; was it exported with NMS?")
    return parse_detections({"bbox": rows, "bbox_num": counts})
