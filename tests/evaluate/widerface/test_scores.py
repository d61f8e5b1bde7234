"""AP on WIDER FACE of the detections of one image after another, and of a folder of files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.core.errors import DataError
from slim_det.evaluate.widerface.files import write_prediction, xywh_of
from slim_det.evaluate.widerface.scores import WiderFaceResult, evaluate_folder, score_predictions
from slim_det.evaluate.widerface.truth import BANDS, GroundTruth, read_text

NONE = np.zeros((0, 5))
FACE = [10.0, 10.0, 19.0, 59.0]
SMALL = [100.0, 10.0, 19.0, 19.0]
HIT = [10.0, 10.0, 28.0, 68.0]
"""Corners of `FACE` by ppdet's rule: the width 19 is 28 - 10 + 1."""

SMALL_HIT = [100.0, 10.0, 118.0, 28.0]


def truth_of(*images: list) -> GroundTruth:
    """Images e/0, e/1, ... of faces xywh; those 50, 30 and 10 pixels high count."""
    faces = tuple(np.array(rows, float).reshape(-1, 4) for rows in images)
    least = np.array([[50], [30], [10]])
    names = tuple(f"e/{i}" for i in range(len(images)))
    return GroundTruth(names, faces, tuple(rows[:, 3] >= least for rows in faces), BANDS)


def values(result: WiderFaceResult) -> tuple[float, float, float]:
    return result.easy, result.medium, result.hard


def scored(*rows: tuple) -> np.ndarray:
    """Rows of corners and score, as files have them."""
    return xywh_of(np.array([[*corners, score] for corners, score in rows], np.float32))


def test_nothing_came(caplog: pytest.LogCaptureFixture) -> None:
    result = score_predictions(truth_of([FACE], []), [])
    assert values(result) == (0.0, 0.0, 0.0) and result.num_images == 2
    assert not caplog.messages


def test_no_image_at_all(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        result = score_predictions(truth_of(), [])
    assert values(result) == (0.0, 0.0, 0.0) and result.num_images == 0
    assert caplog.messages == ["no face counts in easy and medium and hard: AP 0"]


def test_images_without_detections_lower_recall() -> None:
    for found in ([("e/0", scored((HIT, 0.9)))], [("e/1", NONE), ("e/0", scored((HIT, 0.9)))]):
        result = score_predictions(truth_of([FACE], [FACE]), found)
        assert values(result) == (0.5, 0.5, 0.5) and result.num_images == 2


def test_perfect_detections_in_any_order() -> None:
    found = [("e/1", scored((HIT, 0.2))), ("e/0", scored((SMALL_HIT, 0.5), (HIT, 0.9)))]
    result = score_predictions(truth_of([FACE, SMALL], [FACE]), found)
    assert values(result) == (1.0, 1.0, 1.0)


def test_settings_by_hand() -> None:
    """A wrong box before the right ones: the small face is ignored in easy and medium."""
    wrong = [300.0, 300.0, 330.0, 330.0]
    found = scored((wrong, 0.9), (SMALL_HIT, 0.5), (HIT, 0.1))
    result = score_predictions(truth_of([FACE, SMALL]), [("e/0", found)])
    assert values(result) == pytest.approx((1 / 2, 1 / 2, 2 / 3), abs=1e-15)


def test_width_is_one_more_than_the_difference_of_the_corners() -> None:
    """IoU of 1/2 exactly by that rule: 20 x 30 pixels of 20 x 60."""
    for bottom, expected in ((38.0, 1.0), (37.9, 0.0)):
        found = scored(([10.0, 10.0, 28.0, bottom], 0.9))
        assert score_predictions(truth_of([FACE]), [("e/0", found)]).easy == expected


def test_scores_are_stretched_over_the_complete_set() -> None:
    """0.50001 and 0.5 of two images are one step within 0 ... 1, and far apart within 1e-5."""
    wrong = [300.0, 300.0, 330.0, 330.0]
    truth = truth_of([FACE], [FACE], [FACE])
    found = [("e/0", scored((HIT, 0.50001))), ("e/1", scored((wrong, 0.5)))]
    assert score_predictions(truth, found).easy == pytest.approx(1 / 3)
    found.append(("e/2", scored((wrong, 0.01), (wrong, 1.0))))
    assert score_predictions(truth, found).easy == pytest.approx(1 / 3 * 1 / 3)


def test_refused() -> None:
    bad = scored((HIT, 0.9), (HIT, np.nan))
    for image, rows, phrase in (
        ("e/00", NONE, "image 'e/00' is not in the ground truth; did you mean 'e/0'"),
        ("e/0", NONE, "image 'e/0' is given twice"),
        ("e/1", bad, "image 'e/1': detection 1 has a box or score that is not finite"),
    ):
        with pytest.raises(DataError, match=phrase):
            score_predictions(truth_of([FACE], [FACE]), [("e/0", NONE), (image, rows)])


def test_result() -> None:
    result = WiderFaceResult(0.885, 0.8551, 0.73, 3226, 1.26, "official")
    assert str(result) == (
        "WIDER FACE AP (official): easy 0.8850, medium 0.8551, hard 0.7300 on 3226 images; 1.3 s"
    )
    assert list(json.loads(json.dumps(result.as_dict()))) == [
        *("easy", "medium", "hard", "num_images", "seconds", "bands")
    ]


coordinate = st.floats(0, 90, width=32)
row = st.tuples(coordinate, coordinate, coordinate, coordinate, st.floats(0, 1, width=32))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(row, max_size=6), min_size=1, max_size=3))
def test_folder_gives_what_the_arrays_give(
    tmp_path_factory: pytest.TempPathFactory, drawn: list
) -> None:
    """Whatever a detector finds: through files with nine digits, or directly."""
    folder = tmp_path_factory.mktemp("found")
    truth = folder / "truth.text"
    truth.write_text("".join(f"e/{i}.jpg\n1\n10 10 30 60\n" for i in range(len(drawn))))
    direct = []
    for i, rows in enumerate(drawn):
        found = np.array(rows, np.float32).reshape(-1, 5)
        # Rounded as the files have them, so that a value at a bound falls to one side in both.
        write_prediction(folder / "pred", f"e/{i}", xywh_of(found).astype(np.float32))
        direct.append((f"e/{i}", xywh_of(found).astype(np.float32)))
    result = evaluate_folder(folder / "pred", truth)
    assert values(result) == values(score_predictions(read_text(truth), direct))
    assert result.num_images == len(drawn) and result.bands == BANDS


def test_empty_files_and_a_missing_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = tmp_path / "truth.text"
    truth.write_text("".join(f"e/{i}.jpg\n1\n10 10 19 59\n" for i in range(4)))
    for i in range(3):
        write_prediction(tmp_path / "pred", f"e/{i}", NONE if i else np.array([[*FACE, 0.9]]))
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        result = evaluate_folder(tmp_path / "pred", truth)
    assert values(result) == (0.25, 0.25, 0.25) and result.num_images == 4
    assert len(caplog.messages) == 1 and "1 of 4 images" in caplog.messages[0]
