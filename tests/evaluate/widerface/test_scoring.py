"""Judging and AP on WIDER FACE by hand, and against a literal loop over thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.evaluate.widerface.scoring import (
    THRESHOLDS,
    average_precision,
    first_threshold,
    judge,
    overlaps,
)

CAT = (10.0, 10.0, 19.0, 19.0)
"""20 pixels on each side, as the data set counts them."""

DOG = (60.0, 10.0, 19.0, 19.0)
EVERY = [True, True]


def judged(boxes: list, scores: list, faces: list, counted: list) -> tuple[list, list]:
    """One setting, as lists of 0 and 1."""
    hits, proposals = judge(
        np.reshape(boxes, (-1, 4)).astype(float),
        np.array(scores, float),
        np.reshape(faces, (-1, 4)).astype(float),
        np.array([counted], bool),
    )
    return hits[0].astype(int).tolist(), proposals[0].astype(int).tolist()


def ap(scores: list, hits: list, proposals: list, faces: int) -> float:
    return average_precision(
        np.array(scores, float), np.array(hits, bool), np.array(proposals, bool), faces
    )


def test_nothing_at_all() -> None:
    assert overlaps(np.zeros((0, 4)), np.zeros((3, 4))).shape == (0, 3)
    assert judged([], [], [], []) == ([], [])
    assert ap([], [], [], 0) == 0.0
    assert ap([], [], [], 5) == 0.0
    assert ap([0.5], [0], [1], 0) == 0.0


def test_no_detections_of_a_face() -> None:
    assert judged([], [], [CAT], [True]) == ([], [])


def test_image_without_faces_is_passed_over() -> None:
    assert judged([CAT], [0.9], [], []) == ([0], [0])


def test_perfect_detections() -> None:
    assert judged([DOG, CAT], [0.4, 0.9], [CAT, DOG], EVERY) == ([1, 1], [1, 1])
    assert ap([0.4, 0.9], [1, 1], [1, 1], 2) == 1.0


def test_overlap_by_hand() -> None:
    """20 x 20 pixels; half of them shared with 20 x 10; 10 columns shared; apart; an edge."""
    boxes = [CAT, (10, 10, 19, 9), (20, 10, 19, 19), (30, 10, 19, 19), (29, 10, 19, 19)]
    found = overlaps(np.array(boxes, float), np.array([CAT]))[:, 0]
    assert found.tolist() == [1.0, 0.5, 200 / 600, 0.0, 20 / 780]


def test_box_without_size_or_inside_out() -> None:
    """A size of 0 is one pixel; less than that covers nothing and divides by nothing."""
    boxes = [(10, 10, 0, 0), (12, 12, -1, -1), (12, 12, -30, 5)]
    found = overlaps(np.array(boxes, float), np.array([CAT, (12.0, 12.0, -1.0, -1.0)]))
    assert found[:, 0].tolist() == [1 / 400, 0.0, 0.0] and not found[:, 1].any()


def test_iou_of_one_half_is_enough() -> None:
    assert judged([(10, 10, 19, 9)], [0.9], [CAT], [True]) == ([1], [1])
    assert judged([(10, 10, 19, 8.9)], [0.9], [CAT], [True]) == ([0], [1])


def test_duplicate_is_wrong_and_the_higher_score_comes_first() -> None:
    assert judged([CAT, CAT, CAT], [0.3, 0.9, 0.5], [CAT], [True]) == ([0, 1, 0], [1, 1, 1])


def test_of_equal_scores_the_first_is_right() -> None:
    assert judged([CAT, CAT], [0.5, 0.5], [CAT], [True]) == ([1, 0], [1, 1])


def test_claim_to_an_ignored_face_does_not_count() -> None:
    """Nor does its duplicate; the other face is judged as ever."""
    found = judged([CAT, CAT, DOG], [0.9, 0.8, 0.7], [CAT, DOG], [False, True])
    assert found == ([0, 0, 1], [0, 0, 1])


def test_claims_only_the_best_face() -> None:
    """The second detection would fit the second face too, but overlaps the first one more."""
    near = (13.0, 10.0, 19.0, 19.0)
    boxes = [CAT, (11.0, 10.0, 19.0, 19.0)]
    assert judged(boxes, [0.9, 0.8], [CAT, near], EVERY) == ([1, 0], [1, 1])


def test_best_face_ignored_although_another_counts() -> None:
    near = (13.0, 10.0, 19.0, 19.0)
    assert judged([CAT], [0.9], [CAT, near], [False, True]) == ([0], [0])


def test_of_equal_overlaps_the_first_face_is_claimed() -> None:
    between = (12.0, 10.0, 19.0, 19.0)
    faces = [CAT, (14.0, 10.0, 19.0, 19.0)]
    assert judged([between], [0.9], faces, [True, False]) == ([1], [1])
    assert judged([between], [0.9], faces, [False, True]) == ([0], [0])


def test_settings_are_independent() -> None:
    boxes = np.array([CAT, DOG])
    counted = np.array([[True, True], [False, True], [False, False]])
    hits, proposals = judge(boxes, np.array([0.9, 0.8]), boxes, counted)
    assert hits.tolist() == counted.tolist() and proposals.tolist() == counted.tolist()


def test_ap_by_hand() -> None:
    """Right, wrong, right, wrong, of 4 faces: precision 1, 1/2, 2/3, 1/2; recall 1/4, ., 1/2."""
    assert ap([1.0, 0.8, 0.5, 0.0], [1, 0, 1, 0], [1, 1, 1, 1], 4) == pytest.approx(
        1 / 4 + 2 / 3 / 4, abs=1e-15
    )


def test_ap_without_what_claimed_ignored_faces() -> None:
    """The second, not counted, leaves precision 1 for both that are right."""
    assert ap([1.0, 0.8, 0.5, 0.0], [1, 0, 1, 0], [1, 0, 1, 1], 4) == 0.5


def test_ap_is_one_point_where_scores_are_equal() -> None:
    """Two right of three that count; two of five faces found."""
    assert ap([0.3] * 4, [1, 1, 0, 0], [1, 1, 1, 0], 5) == pytest.approx(2 / 3 * 2 / 5)
    assert ap([0.3], [1], [1], 1) == 1.0


def test_scores_within_one_step_share_a_threshold() -> None:
    """Between 0.999 and 1 there is no threshold: wrong before right is one point, 1/2."""
    assert ap([1.0, 0.9995, 0.0], [0, 1, 0], [1, 1, 0], 1) == 0.5
    assert ap([1.0, 0.9985, 0.0], [1, 0, 0], [1, 1, 0], 1) == 1.0


def test_score_equal_to_a_threshold_passes_it() -> None:
    scores = np.array([0.0, 1.0, 0.999, 0.998, 0.9985, 0.0015, 0.0005, 0.5])
    assert first_threshold(scores).tolist() == [999, 0, 0, 1, 1, 998, 999, 499]


def test_stretching_takes_any_range() -> None:
    scores = np.array([-3.0, 7.0, 2.0])
    assert first_threshold(scores).tolist() == [999, 0, 499]
    assert first_threshold(np.array([0.7, 0.7])).tolist() == [0, 0]


def test_thresholds() -> None:
    assert len(THRESHOLDS) == 1000 and THRESHOLDS[-1] == 0.0
    assert THRESHOLDS[0] == pytest.approx(0.999) and (np.diff(THRESHOLDS) < 0).all()


# The definition once more, literally: one image, one detection and one threshold at a time.


def slow_iou(box: tuple, face: tuple) -> float:
    width = min(box[0] + box[2], face[0] + face[2]) - max(box[0], face[0]) + 1
    height = min(box[1] + box[3], face[1] + face[3]) - max(box[1], face[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    areas = (box[2] + 1) * (box[3] + 1) + (face[2] + 1) * (face[3] + 1)
    return width * height / (areas - width * height)


def slow_counts(rows: list, faces: list, counted: list, threshold: float) -> tuple[int, int]:
    """Faces found and detections that count, of one image, with scores that pass."""
    taken: set[int] = set()
    proposals = 0
    for box, score in sorted(rows, key=lambda row: -row[1]):
        if score < threshold or not faces:
            break
        shared = [slow_iou(box, face) for face in faces]
        best = shared.index(max(shared))
        if shared[best] < 0.5:
            proposals += 1
        elif counted[best]:
            proposals += 1
            taken.add(best)
    return len(taken), proposals


def slow_ap(images: list) -> float:
    """AP of (detections, faces, counted) of every image, one setting."""
    every = [score for rows, _, _ in images for _, score in rows]
    total = sum(sum(counted) for _, _, counted in images)
    if not every or not total:
        return 0.0
    low, spread = min(every), max(every) - min(every)
    points = []
    for t in range(1000):
        found = proposals = 0
        for rows, faces, counted in images:
            stretched = [(box, (score - low) / spread if spread else 1.0) for box, score in rows]
            one, other = slow_counts(stretched, faces, counted, 1 - (t + 1) / 1000)
            found, proposals = found + one, proposals + other
        if proposals:
            points.append((found / total, found / proposals))
    area, reached = 0.0, 0.0
    for i, (recall, _) in enumerate(points):
        area += (recall - reached) * max(precision for _, precision in points[i:])
        reached = recall
    return area


side = st.integers(0, 12)
box = st.tuples(side, side, side, side)
score = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.25, 0.5, 0.5005, 0.999]))
image = st.tuples(
    st.lists(st.tuples(box, score), max_size=6),
    st.lists(st.tuples(box, st.booleans()), max_size=4),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(image, max_size=3))
def test_equals_the_literal_definition(drawn: list) -> None:
    images = [(rows, [f for f, _ in faces], [c for _, c in faces]) for rows, faces in drawn]
    scores, hits, proposals = [], [], []
    for rows, faces, counted in images:
        values = [value for _, value in rows]
        right, counts = judged([place for place, _ in rows], values, faces, counted)
        scores, hits, proposals = scores + values, hits + right, proposals + counts
    found = ap(scores, hits, proposals, sum(sum(counted) for _, _, counted in images))
    assert found == pytest.approx(slow_ap(images), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(image, st.randoms(use_true_random=False))
def test_order_of_the_rows_makes_no_difference(drawn: tuple, random) -> None:
    """Scores made distinct first; hits follow their detection."""
    rows, faces = drawn
    rows = [(place, i / 10) for i, (place, _) in enumerate(rows)]
    shuffled = random.sample(rows, len(rows))
    counted = [c for _, c in faces]

    def worth(order: list) -> dict:
        right, counts = judged(
            [place for place, _ in order], [s for _, s in order], [f for f, _ in faces], counted
        )
        return {s: pair for (_, s), *pair in zip(order, right, counts)}

    assert worth(rows) == worth(shuffled)
