"""Verdicts on hand-set outputs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from slim_det.evaluate.detections import Detections
from slim_det.evaluate.tensor_agreement import cosine
from slim_det.verify.stages import (
    NOISE_FACTOR,
    Found,
    Limits,
    Stage,
    distances,
    judge,
)
from tests.detections import found_in

BOX = found_in([0, 0.9, 10, 10, 20, 20])
NOTHING = Detections.empty()
LIMITS = Limits(cosine=0.99, same_boxes=True)


def found(*values: float, boxes: Detections = BOX) -> Found:
    return Found([np.array(values, np.float32)], boxes)


def test_no_image_is_a_failure() -> None:
    stage = judge("engine", [], [], LIMITS)
    assert stage.passed is False and "no image" in stage.note


def test_equal_outputs() -> None:
    stage = judge("engine", [found(1, 2)], [found(1, 2)], LIMITS, (0.5, 0.5), "oneDNN")
    assert stage.passed and (stage.max_abs, stage.cosine, stage.ap) == (0.0, 1.0, 0.5)
    assert stage.note.startswith("oneDNN; 1 boxes, 0 without a partner")


def test_worst_of_all_outputs_and_images() -> None:
    good = found(1, 0)
    bad = Found([np.array([1.0, 1.0], np.float32)], BOX)
    stage = judge("engine", [good, bad], [good, good], Limits(0.9))
    assert stage.max_abs == 1.0 and stage.cosine == pytest.approx(math.sqrt(0.5))
    assert stage.passed is False and stage.note == "cosine below 0.9"


def test_distances_are_of_all_images_at_once() -> None:
    """Outputs one by one; a second image that agrees dilutes the first."""
    reference = [Found([np.array([1.0, 0.0]), np.array([2.0])], BOX)] * 2
    other = [Found([np.array([0.0, 1.0]), np.array([2.0])], BOX), reference[1]]
    assert distances([], []) == []
    assert distances(reference, reference) == [0.0, 0.0]
    assert distances(other, reference) == pytest.approx([0.5, 0.0])
    assert distances(other[:1], reference[:1]) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(("share", "passed"), [(0.49, False), (0.51, True), (2.0, True)])
def test_below_the_cosine_noise_decides(share: float, passed: bool) -> None:
    """Twice the model's own rounding noise is allowed, and the note says so."""
    reference, other = [found(1, 0)], [found(3, 1)]
    (distance,) = distances(other, reference)
    stage = judge("engine", other, reference, LIMITS, noise=[share * distance])
    assert stage.passed is passed
    assert f"{1 / share:.1f} times the model's own rounding noise" in stage.note
    assert (1 / share <= NOISE_FACTOR) is passed


def test_noise_of_one_output_does_not_excuse_another() -> None:
    reference = [Found([np.array([1.0, 0.0]), np.array([1.0, 0.0])], BOX)]
    other = [Found([np.array([1.0, 0.0]), np.array([3.0, 1.0])], BOX)]
    first, second = distances(other, reference)
    assert first == 0.0
    assert judge("engine", other, reference, LIMITS, noise=[0.0, second]).passed
    assert judge("engine", other, reference, LIMITS, noise=[second, 0.0]).passed is False


def test_noise_forbids_nothing() -> None:
    """Within the least cosine a model without any noise passes."""
    other, reference = [found(100, 1)], [found(100, 0)]
    stage = judge("engine", other, reference, LIMITS, noise=[0.0])
    assert stage.passed and "noise" not in stage.note


def test_cosine_at_the_limit_passes() -> None:
    reference, other = found(1, 0), found(3, 4)
    angle = cosine(other.raw[0], reference.raw[0])
    assert judge("engine", [other], [reference], Limits(angle)).passed
    assert not judge("engine", [other], [reference], Limits(np.nextafter(angle, 1.0))).passed


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ([np.ones(3)], r"shapes are [[3]], expected [[2]]"),
        ([], r"shapes are [], expected [[2]]"),
        ([np.array([np.nan, 1.0])], "values are not finite"),
        ([np.array([np.inf, 1.0])], "values are not finite"),
    ],
)
def test_outputs_that_cannot_be_compared(raw: list[np.ndarray], fault: str) -> None:
    stage = judge("engine", [Found(raw, BOX)], [found(1, 2)], LIMITS)
    assert stage.passed is False and fault in stage.note
    assert stage.as_dict()["max_abs"] is None  # infinity is not JSON
    json.dumps(stage.as_dict(), allow_nan=False)


def test_other_boxes_where_they_have_to_be_the_same() -> None:
    left, right = found(1, 2, boxes=NOTHING), found(1, 2)
    assert judge("engine", [left], [right], LIMITS).passed is False
    assert judge("engine", [left], [right], Limits(0.99)).passed


@pytest.mark.parametrize(("ap", "passed"), [(0.5, True), (0.5049, True), (0.5051, False)])
def test_half_a_point_of_ap(ap: float, passed: bool) -> None:
    stage = judge("engine", [found(1)], [found(1)], LIMITS, (ap, 0.5))
    assert stage.passed is passed
    assert judge("engine", [found(1)], [found(1)], Limits(0.9, ap=None), (ap, 0.5)).passed


@pytest.mark.parametrize(("ap", "passed"), [(0.9, True), (0.25, True), (0.24, False), (0.0, False)])
def test_ap_that_collapsed(ap: float, passed: bool) -> None:
    """Whatever is allowed otherwise."""
    stage = judge("engine", [found(1)], [found(1)], Limits(0.9, ap=None), (ap, 0.5))
    assert stage.passed is passed
    assert ("more than half of the AP is lost" in stage.note) is not passed


def test_ap_that_was_not_measured() -> None:
    stage = judge("engine", [found(1)], [found(1)], LIMITS)
    assert stage.passed and stage.ap is None


def test_detector_without_raw_outputs() -> None:
    """Judged by its boxes or AP; without either there is no verdict that passes."""
    alone = Found([], BOX)
    stage = judge("engine", [alone], [alone], LIMITS)
    assert stage.passed and stage.cosine is None and stage.max_abs is None
    assert judge("engine", [alone], [alone], Limits(0.9), (0.5, 0.5)).passed
    assert judge("engine", [alone], [alone], Limits(0.9)).passed is False


def test_stage_as_json() -> None:
    stage = Stage("engine", 0.25, 0.5, None, None, "skipped")
    assert stage.as_dict() == {
        "name": "engine",
        "max_abs": 0.25,
        "cosine": 0.5,
        "ap": None,
        "passed": None,
        "note": "skipped",
    }


def test_stage_that_is_judged_by_its_relative_difference_as_json() -> None:
    stage = Stage("head", 0.25, 0.5, None, True, "", 0.125)
    assert stage.as_dict()["max_relative"] == 0.125
    assert Stage("head", max_relative=math.inf).as_dict()["max_relative"] is None


def test_stage_as_a_line() -> None:
    stage = Stage("head", 0.25, 0.5, None, True, "why", 0.125)
    figures = "max abs 2.50e-01, relative 1.25e-01, cosine 0.500000000"
    assert str(stage) == f"pass  head: {figures}  why"
    assert str(Stage("engine", 0.25, None, None, False)).startswith("FAIL  engine: max abs 2.50")
    assert str(Stage("engine", note="no program")).startswith("skip  engine")
