"""Detections of an image, and the parser of an NMS's output."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from slim_det.core.errors import ExportError
from slim_det.evaluate.detections import Detections, parse_arrays, parse_detections
from tests.detections import found_in, rows_of

ROWS = np.array([[2, 0.5, 1, 2, 3, 4], [0, 0.25, 5, 6, 7, 8], [-1, 0.75, 9, 8, 7, 6]], np.float32)
NOTHING = np.array([[-1.0]], np.float32)
"""Output of Paddle's NMS for a batch without boxes."""


def test_nothing() -> None:
    nothing = Detections.empty()
    assert len(nothing) == 0
    shapes = [nothing.boxes_xyxy.shape, nothing.scores.shape, nothing.class_ids.shape]
    assert shapes == [(0, 4), (0,), (0,)]


def test_columns_of_rows() -> None:
    found = Detections.from_rows(ROWS)
    assert found.class_ids.tolist() == [2, 0, -1] and found.scores.tolist() == [0.5, 0.25, 0.75]
    assert found.boxes_xyxy.tolist() == ROWS[:, 2:].tolist() and len(found) == 3
    kinds = [found.boxes_xyxy.dtype, found.scores.dtype, found.class_ids.dtype]
    assert kinds == [np.float32, np.float32, np.int64]


def test_some_of_them() -> None:
    found = Detections.from_rows(ROWS)
    for chosen in (slice(1, 3), np.array([False, True, True]), np.array([1, 2])):
        assert rows_of(found[chosen]).tolist() == ROWS[1:].tolist()
    assert len(found[found.scores > 2]) == 0


@pytest.mark.parametrize("shapes", [((2, 4), (1,), (2,)), ((2, 4), (2,), (3,)), ((8,), (2,), (2,))])
def test_columns_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="expected \\[n, 4\\], \\[n\\], \\[n\\]"):
        Detections(*(np.zeros(shape) for shape in shapes))


def test_images_of_a_batch() -> None:
    """Also as tensors, as ppdet's Trainer has them."""
    outputs = {"bbox": ROWS, "bbox_num": np.array([1, 0, 2], np.int32), "extra": None}
    for kind in (np.asarray, paddle.to_tensor):
        given = {key: kind(outputs[key]) for key in ("bbox", "bbox_num")}
        found = parse_detections(given)
        assert [rows_of(f).tolist() for f in found] == [ROWS[:1].tolist(), [], ROWS[1:].tolist()]


@pytest.mark.parametrize("nothing", [NOTHING, np.zeros((0, 6), np.float32)])
@pytest.mark.parametrize("told", [0, 1])
def test_a_batch_without_any_box(nothing: np.ndarray, told: int) -> None:
    """Whatever Paddle's NMS says how many there are."""
    counts = np.array([told if nothing is NOTHING else 0, 0, 0], np.int32)
    found = parse_detections({"bbox": nothing, "bbox_num": counts})
    assert [len(boxes) for boxes in found] == [0, 0, 0]


def test_arrays_of_an_engine() -> None:
    """In any order; what is neither boxes nor counts is left alone."""
    counts, other = np.array([3], np.int32), np.zeros((1, 3, 2, 2))
    for arrays in ([ROWS, counts], [counts, other, ROWS]):
        (found,) = parse_arrays(arrays, "x")
        assert rows_of(found).tolist() == ROWS.tolist()
    assert [len(found) for found in parse_arrays([NOTHING, counts], "x")] == [0]
    for lacking in ([], [ROWS], [counts], [other]):
        with pytest.raises(
            ExportError, match="^'m' outputs no boxes; was it exported with NMS\\?$"
        ):
            parse_arrays(lacking, "'m'")


def test_rows_for_tests() -> None:
    assert rows_of(found_in(*ROWS)).tolist() == ROWS.tolist() and len(found_in()) == 0
