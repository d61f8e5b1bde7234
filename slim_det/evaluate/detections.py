"""What a detector finds in an image, and the one parser of what its NMS gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from slim_det.core.errors import ExportError

_ROW_LENGTH = 6
"""Of the rows of an NMS: class, score, xyxy."""


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes found in one image, in the detector's order.

    Attributes:
        boxes_xyxy: float32 [n, 4], corners in pixels of the original image.
        scores: float32 [n].
        class_ids: int64 [n]; negative where a box has no class.

    Raises:
        ValueError: The boxes do not have four corners, or there is not one score and one class
            for each.
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
        """An image in which nothing is found."""
        return cls.from_rows(np.zeros((0, _ROW_LENGTH)))

    @classmethod
    def from_rows(cls, rows: np.ndarray) -> Detections:
        """Boxes from rows as Paddle's NMS gives them: float [n, 6], class, score, xyxy."""
        return cls(rows[:, 2:], rows[:, 1], rows[:, 0])

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | np.ndarray) -> Detections:
        """Some of the boxes, by a slice, a mask or indices."""
        return Detections(self.boxes_xyxy[chosen], self.scores[chosen], self.class_ids[chosen])


Predict = Callable[[dict[str, Any]], "list[Detections]"]
"""Takes one batch of a ppdet reader; gives what is found in each of its images."""


def parse_detections(outputs: Mapping[str, Any]) -> list[Detections]:
    """The boxes of every image of a batch, from what ppdet's models give.

    Args:
        outputs: ``bbox`` float [N, 6] (class, score, xyxy in pixels of the original image) and
            ``bbox_num`` int [batch]. Where no image of a batch has a box, Paddle's NMS gives one
            row of a single -1.
    """
    rows, counts = np.asarray(outputs["bbox"]), np.asarray(outputs["bbox_num"]).ravel()
    if rows.shape[-1] != _ROW_LENGTH:
        return [Detections.empty() for _ in counts]
    found, ends = Detections.from_rows(rows), np.cumsum(counts)
    return [found[end - count : end] for end, count in zip(ends, counts)]


def parse_arrays(arrays: Iterable[Any], source: str) -> list[Detections]:
    """The same from the outputs of an engine, which have no names of ours.

    Args:
        arrays: In any order: the boxes, the first array with two axes, and their counts, the
            first with one.
        source: What gave them, for the message.

    Raises:
        ExportError: One of the two is missing.
    """
    given = [np.asarray(array) for array in arrays]
    rows, counts = (next((a for a in given if a.ndim == axes), None) for axes in (2, 1))
    if rows is None or counts is None:
        raise ExportError(f"{source} gives no boxes; was it exported with NMS?")
    return parse_detections({"bbox": rows, "bbox_num": counts})
