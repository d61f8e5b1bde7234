"""When two engines agree on the boxes of an image."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.evaluate.box_agreement import (
    MIN_SCORE,
    PIXEL_TOLERANCE,
    SCORE_TOLERANCE,
    BoxAgreement,
    compare_boxes,
)
from slim_det.evaluate.detections import Detections, parse_detections
from tests.detections import found_in, rows_of

EMPTY = Detections.empty()
BOXES = found_in([0, 0.9, 1, 2, 30, 40], [1, 0.6, 5, 5, 9, 9], [0, 0.3, 50, 50, 80, 90])


def changed(row: int, column: int, by: float) -> Detections:
    rows = rows_of(BOXES)
    rows[row, column] += by
    return found_in(*rows)


def test_nothing_agrees_with_nothing() -> None:
    agreement = compare_boxes(EMPTY, EMPTY)
    assert agreement == BoxAgreement(0, 0, 0.0, 0.0) and agreement.passed


def test_equal_boxes_in_any_order() -> None:
    assert compare_boxes(BOXES, BOXES[::-1]) == BoxAgreement(3, 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("column", "tolerance"), [(1, SCORE_TOLERANCE), (2, PIXEL_TOLERANCE), (5, PIXEL_TOLERANCE)]
)
def test_difference_within_and_beyond_tolerance(column: int, tolerance: float) -> None:
    near = compare_boxes(BOXES, changed(1, column, 0.9 * tolerance))
    assert near.passed and near.boxes == 3
    largest = near.max_score if column == 1 else near.max_pixels
    assert largest == pytest.approx(0.9 * tolerance, abs=1e-6)  # of float32 numbers
    far = compare_boxes(BOXES, changed(1, column, 1.1 * tolerance))
    assert not far.passed and far.unmatched == 2  # on either side


def test_another_class_is_another_box() -> None:
    assert compare_boxes(BOXES, changed(1, 0, 1.0)).unmatched == 2


@pytest.mark.parametrize("sides", [(BOXES, BOXES[:2]), (BOXES[:2], BOXES), (BOXES[:1], EMPTY)])
def test_missing_box(sides: tuple[Detections, Detections]) -> None:
    """On either side, and where one side has none at all."""
    agreement = compare_boxes(*sides)
    assert agreement.unmatched == 1 and not agreement.passed
    assert "1 without a partner" in str(agreement)


def test_boxes_below_the_limit_are_left_out() -> None:
    """Which of them survive depends on the last digits."""
    faint = found_in([0, MIN_SCORE - 0.001, 1, 1, 9, 9])
    assert compare_boxes(faint, EMPTY) == BoxAgreement(0, 0, 0.0, 0.0)


def test_partner_just_below_the_limit_is_found() -> None:
    """A box at the limit may be a little fainter in the other engine, but may not be gone."""
    above = found_in([0, MIN_SCORE + 0.0005, 1, 1, 9, 9])
    below = found_in([0, MIN_SCORE - 0.0005, 1, 1, 9, 9])
    for sides in ((above, below), (below, above)):
        assert compare_boxes(*sides).passed
        assert compare_boxes(*sides).boxes == 1
    assert not compare_boxes(above, EMPTY).passed


def test_no_box_as_paddles_nms_writes_it() -> None:
    """One row of a single -1 is no box."""
    outputs = {"bbox": np.array([[-1.0]]), "bbox_num": np.array([1])}
    (nothing,) = parse_detections(outputs)
    assert compare_boxes(nothing, nothing).passed
    assert compare_boxes(BOXES, nothing).unmatched == 3
