"""COCO matches by hand, and the same AP as pycocotools' COCOeval on random images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from slim_det.core.errors import DataError
from slim_det.evaluate.coco_matching import CocoScorer, recalled_precision
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.scorer import ApScores
from tests.detections import found_in as boxes
from tests.detections import rows_of
from tests.evaluate.oracles import coco_scores, indexed

ALL = 0b11_1111_1111
CATEGORIES = {7: 0, 3: 1, 9: 2}
"""Category id -> class index; neither dense nor in order."""
Row = Sequence[Any]


def annotated(*images: Sequence[Row], first_id: int = 1, **extra: Any) -> COCO:
    """Images 1, 2, ... with rows of (category, crowd, xywh)."""
    rows = [(image, *row) for image, rows in enumerate(images, start=1) for row in rows]
    annotations = [
        {
            **{"id": i, "image_id": m, "category_id": c, "iscrowd": int(crowd)},
            **{"bbox": [x, y, w, h], "area": w * h, **extra},
        }
        for i, (m, c, crowd, x, y, w, h) in enumerate(rows, start=first_id)
    ]
    return indexed(
        {
            "images": [{"id": i, "width": 100, "height": 100} for i in range(1, len(images) + 1)],
            "annotations": annotations,
            "categories": [{"id": k, "name": str(k)} for k in CATEGORIES],
        }
    )


def scorer_of(truth: COCO, order: Sequence[int] | None = None, **limit: int) -> CocoScorer:
    scorer = CocoScorer(truth, CATEGORIES, **limit)
    for image in truth.getImgIds() if order is None else order:
        scorer.add_batch({"im_id": np.array([[image]])})
    return scorer


def coco_ap(truth: COCO, found: dict[int, Detections]) -> float:
    return coco_scores(truth, CATEGORIES, found).ap


def assert_equal(scores: ApScores, expected: ApScores) -> None:
    assert scores.ap == pytest.approx(expected.ap, abs=1e-12)
    assert scores.ap50 == pytest.approx(expected.ap50, abs=1e-12)
    assert scores.per_class == pytest.approx(expected.per_class, abs=1e-12)
    assert list(scores.per_class) == list(expected.per_class)


CAT = (7, 0, 10, 10, 20, 20)
DOG = (3, 0, 50, 50, 20, 20)
ON_CAT = (10, 10, 30, 30)


def test_no_images() -> None:
    scorer = CocoScorer(annotated(), CATEGORIES)
    assert scorer.num_images == 0 and scorer.ap([]) == 0.0 and scorer.name == "coco_ap"


def test_no_boxes() -> None:
    """Noted, because a detector that finds nothing at all is rarely intended."""
    scorer = scorer_of(annotated([CAT]))
    assert scorer.scores([scorer.match(0, boxes())]) == ApScores(
        0.0, 0.0, {"7": 0.0}, ("no boxes were found at all: AP is 0",)
    )


def test_no_objects() -> None:
    scorer = scorer_of(annotated([]))
    matches = scorer.match(0, boxes((0, 0.9, *ON_CAT)))
    assert matches.hits.tolist() == [0] and scorer.ap([matches]) == 0.0


def test_perfect_boxes() -> None:
    scorer = scorer_of(annotated([CAT, DOG]))
    matches = scorer.match(0, boxes((1, 0.4, 50, 50, 70, 70), (0, 0.9, *ON_CAT)))
    assert matches.classes.tolist() == [0, 1]
    assert matches.scores.tolist() == [np.float32(0.9), np.float32(0.4)]
    assert matches.hits.tolist() == [ALL, ALL] and matches.ignored.tolist() == [0, 0]
    assert_equal(scorer.scores([matches]), ApScores(1.0, 1.0, {"7": 1.0, "3": 1.0}))


def test_shifted_box_is_found_at_some_thresholds() -> None:
    """IoU of 360/440 reaches 0.50 to 0.80; wrong before right gives precision 1/2 above."""
    scorer = scorer_of(annotated([CAT]))
    matches = scorer.match(0, boxes((0, 0.9, 12, 10, 32, 30), (0, 0.8, *ON_CAT)))
    assert matches.hits.tolist() == [0b00_0111_1111, 0b11_1000_0000]
    assert scorer.ap([matches]) == pytest.approx((7 * 1 + 3 / 2) / 10)


def test_wrong_class_and_duplicate() -> None:
    scorer = scorer_of(annotated([CAT]))
    found = boxes((0, 0.5, *ON_CAT), (1, 0.9, *ON_CAT), (0, 0.8, *ON_CAT))
    matches = scorer.match(0, found)
    assert matches.classes.tolist() == [1, 0, 0] and matches.hits.tolist() == [0, ALL, 0]
    assert not matches.ignored.any()


def test_taken_object_leaves_the_second_best() -> None:
    """Unlike in VOC: the second box falls back to the object below, IoU 19/22, up to 0.85."""
    scorer = scorer_of(annotated([CAT, (7, 0, 10, 12, 20, 20)]))
    found = boxes((0, 0.9, *ON_CAT), (0, 0.8, 10, 10, 30, 31))
    assert scorer.match(0, found).hits.tolist() == [ALL, 0b00_1111_1111]


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    """So that the first one is left for the second box."""
    scorer = scorer_of(annotated([(7, 0, 0, 0, 20, 20), (7, 0, 4, 0, 20, 20)]))
    between = (0, 0.9, 2, 0, 22, 20)
    assert scorer.match(0, boxes(between, (0, 0.8, 0, 0, 20, 20))).hits[1] == ALL
    assert scorer.match(0, boxes(between, (0, 0.8, 4, 0, 24, 20))).hits[1] != ALL


def test_crowd_absorbs_any_number_of_boxes() -> None:
    """A crowd's overlap is the box's share inside it; a free object is preferred."""
    scorer = scorer_of(annotated([(7, 1, 0, 0, 100, 100), CAT]))
    inside = (0, 0.5, 60, 60, 70, 70)
    matches = scorer.match(0, boxes(inside, inside, (0, 0.9, *ON_CAT), (0, 0.8, *ON_CAT)))
    assert matches.hits.tolist() == [ALL, 0, 0, 0]
    assert matches.ignored.tolist() == [0, ALL, ALL, ALL]
    assert scorer.ap([matches]) == pytest.approx(1.0, abs=1e-12)


def test_class_with_nothing_but_a_crowd() -> None:
    """It has the value 0 and no part in the mean, as pycocotools has it."""
    truth = annotated([(3, 1, 0, 0, 100, 100), CAT])
    found = boxes((0, 0.9, *ON_CAT))
    scorer = scorer_of(truth)
    scores = scorer.scores([scorer.match(0, found)])
    assert_equal(scores, ApScores(1.0, 1.0, {"7": 1.0, "3": 0.0}))
    assert_equal(scores, coco_scores(truth, CATEGORIES, {1: found}))


def test_box_inside_out_is_ignored() -> None:
    """Its area is negative, so pycocotools puts it out of the range of areas."""
    scorer = scorer_of(annotated([CAT]))
    matches = scorer.match(0, boxes((0, 0.9, 30, 10, 10, 30)))
    assert matches.hits.tolist() == [0] and matches.ignored.tolist() == [ALL]


def test_negative_classes_are_dropped() -> None:
    scorer = scorer_of(annotated([CAT]))
    assert scorer.match(0, boxes((-1, 0.9, *ON_CAT), (0, 0.8, *ON_CAT))).hits.tolist() == [ALL]


def test_hundred_boxes_of_a_class_count() -> None:
    """The 101st cat is lost; the dog after it is not."""
    many = [(0, 0.9, 80, 80, 90, 90)] * 100
    found = boxes(*many, (0, 0.8, *ON_CAT), (1, 0.7, 50, 50, 70, 70))
    scorer = scorer_of(annotated([CAT, DOG]))
    matches = scorer.match(0, found)
    assert len(matches.hits) == 101 and matches.hits.tolist() == [0] * 100 + [ALL]
    assert scorer.ap([matches]) == pytest.approx(0.5)


def test_objects_of_images_that_are_never_read() -> None:
    """They are missed, as with pycocotools, unless only the first images are used."""
    truth = annotated([CAT], [CAT])
    found = boxes((0, 0.9, *ON_CAT))
    scorer = scorer_of(truth, order=[1])
    assert scorer.ap([scorer.match(0, found)]) == pytest.approx(51 / 101)
    assert coco_ap(truth, {1: found}) == pytest.approx(51 / 101)
    first = scorer_of(truth, num_images=1)
    assert first.num_images == 1
    assert first.ap([first.match(0, found)]) == pytest.approx(1.0)


def test_errors() -> None:
    scorer = scorer_of(annotated([CAT]))
    with pytest.raises(DataError, match="image 1 occurs twice"):
        scorer.add_batch({"im_id": np.array([[1]])})
    with pytest.raises(DataError, match="image 5 is not in the annotation file"):
        scorer.add_batch({"im_id": np.array([[5]])})
    with pytest.raises(DataError, match="box has class 3; the annotation file has 3 categories"):
        scorer.match(0, boxes((3, 0.9, *ON_CAT)))
    with pytest.raises(ValueError, match="image 1 requested; 1 images were added"):
        scorer.match(1, boxes())
    incomplete = annotated([CAT])
    del incomplete.dataset["annotations"][0]["area"]
    with pytest.raises(DataError, match="annotation 1 of image 1 has no 'area'"):
        CocoScorer(incomplete, CATEGORIES)


def test_average_precision_by_hand() -> None:
    """Hit, miss, hit with two objects: 51 recalls at precision 1, 50 at 2/3."""
    none = np.array([], np.uint16)
    assert recalled_precision(none, none, 2).tolist() == [[0.0] * 101] * 10
    hits = np.array([ALL, 0, ALL], np.uint16)
    table = recalled_precision(hits, np.zeros(3, np.uint16), 2)
    assert table == pytest.approx(np.array([[1.0] * 51 + [2 / 3] * 50] * 10))
    assert recalled_precision(hits, np.array([0, ALL, 0], np.uint16), 2) == pytest.approx(1.0)


def random_image(random: np.random.Generator) -> tuple[list[Row], Detections]:
    """Objects and boxes that crowd together, with ties of scores and of overlaps."""
    count = int(random.integers(0, 7))
    table = np.column_stack(
        [
            random.choice(list(CATEGORIES)[:2], count),
            random.random(count) < 0.3,
            random.integers(0, 30, (count, 2)),
            random.integers(1, 25, (count, 2)),
        ]
    ).astype(float)
    table[:, 2:] += random.choice([0, 0.3]) * random.random((count, 4))
    near = table[random.integers(0, count, 12 if count else 0)]
    near[:, 0] = [CATEGORIES[int(c)] for c in near[:, 0]]
    near[:, 4:] += near[:, 2:4]
    near[:, 2:] += random.integers(-3, 4, near[:, 2:].shape)
    far = random.integers(0, 60, (4, 6)).astype(float)
    far[:, 0] = random.integers(-1, 3, 4)
    found = np.concatenate([near, far])[: random.integers(0, 17)]
    found[:, 1] = random.integers(1, 6, len(found)) / 5
    return table.tolist(), boxes(*random.permutation(found))


@pytest.mark.parametrize("first_id", [0, 1])
def test_equals_pycocotools(first_id: int) -> None:
    """Also with an annotation of id 0, whose finder pycocotools counts as wrong."""
    random = np.random.default_rng(5)
    values = set()
    for _ in range(50):
        rows, found = zip(*(random_image(random) for _ in range(random.integers(1, 7))))
        truth = annotated(*rows, first_id=first_id)
        order = random.permutation(len(rows)).tolist()
        scorer = scorer_of(truth, order=[i + 1 for i in order])
        scores = scorer.scores([scorer.match(k, found[i]) for k, i in enumerate(order)])
        expected = coco_scores(truth, CATEGORIES, dict(enumerate(found, start=1)))
        assert_equal(scores, expected)
        values.add(expected.ap)
    assert len(values) > 25


def test_equals_pycocotools_beyond_a_hundred_boxes() -> None:
    random = np.random.default_rng(6)
    rows, _ = random_image(random)
    found = boxes(*np.concatenate([rows_of(random_image(random)[1]) for _ in range(60)]))
    truth = annotated(rows, rows)
    scorer = scorer_of(truth)
    half = len(found) // 2
    assert half > 210
    value = scorer.ap([scorer.match(0, found[:half]), scorer.match(1, found[half:])])
    assert value == pytest.approx(coco_ap(truth, {1: found[:half], 2: found[half:]}), abs=1e-12)


def test_areas_out_of_range() -> None:
    """An object larger than pycocotools' largest area is ignored; so is a box that misses."""
    huge = 2e5
    truth = annotated([(7, 0, 0, 0, huge, huge), CAT])
    found = boxes((0, 0.9, 0, 0, huge, huge), (0, 0.8, 1e6, 0, 1e6 + huge, huge), (0, 0.7, *ON_CAT))
    scorer = scorer_of(truth)
    matches = scorer.match(0, found)
    assert matches.ignored.tolist() == [ALL, ALL, 0] and matches.hits.tolist() == [0, 0, ALL]
    assert scorer.ap([matches]) == pytest.approx(coco_ap(truth, {1: found}), abs=1e-12)


def test_repeated_images_equal_a_data_set_that_repeats_them() -> None:
    random = np.random.default_rng(4)
    rows, found = zip(*(random_image(random) for _ in range(6)))
    scorer = scorer_of(annotated(*rows))
    # Nothing is missed besides: every image was added.
    matches = [scorer.match(i, boxes) for i, boxes in enumerate(found)]
    for _ in range(12):
        drawn = random.integers(0, 6, random.integers(1, 10))
        value = scorer.ap([matches[i] for i in drawn], drawn)
        truth = annotated(*(rows[i] for i in sorted(drawn)))
        resampled = {k: found[i] for k, i in enumerate(sorted(drawn), start=1)}
        assert value == pytest.approx(coco_ap(truth, resampled), abs=1e-12)
    assert scorer.ap(matches) == scorer.ap(matches[::-1], range(5, -1, -1))
