"""VOC matches by hand, and the same mAP as ppdet's own VOCMetric on random images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppdet.metrics.map_utils import jaccard_overlap

from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.scorer import ApScores
from slim_det.evaluate.voc_matching import VocScorer, average_precision, ppdet_overlaps
from tests.detections import found_in as boxes
from tests.evaluate.oracles import voc_scores

CLASSES = 4
NAMES = dict(enumerate("abcd"))
MAP_TYPES = ["11point", "integral"]


def objects(*rows: Sequence[float], scale: tuple[float, float] = (1.0, 1.0)) -> dict[str, Any]:
    """One image of ppdet's reader: rows of (class, difficult, xyxy) in original pixels."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    height, width = np.array(scale, np.float32)
    return {
        "gt_bbox": [table[:, 2:] * np.array([width, height, width, height], np.float32)],
        "gt_class": [table[:, :1].astype(np.int32)],
        "difficult": [table[:, 1:2].astype(np.int32)],
        "scale_factor": np.array([scale], np.float32),
    }


def scorer_of(images: Sequence[dict[str, Any]], map_type: str = "11point") -> VocScorer:
    scorer = VocScorer(CLASSES, map_type, names=NAMES)
    for image in images:
        scorer.add_batch(image)
    return scorer


def scores_of(
    images: Sequence[dict[str, Any]], found: Sequence[Detections], map_type: str
) -> ApScores:
    scorer = scorer_of(images, map_type)
    return scorer.scores([scorer.match(i, rows) for i, rows in enumerate(found)])


def ppdet_scores(
    labels: Path, images: Sequence[dict[str, Any]], found: Sequence[Detections], map_type: str
) -> ApScores:
    return voc_scores(labels, CLASSES, map_type, images, [[rows] for rows in found])


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voc") / "labels.txt"
    path.write_text("\n".join(NAMES.values()) + "\n")
    return path


CAT = (0, 0, 10, 10, 29, 29)
DOG = (1, 0, 50, 50, 69, 69)


def test_no_images() -> None:
    scorer = VocScorer(CLASSES)
    assert scorer.num_images == 0 and scorer.ap([]) == 0.0


@pytest.mark.parametrize("map_type", MAP_TYPES)
def test_no_boxes(map_type: str) -> None:
    assert scores_of([objects(CAT)], [boxes()], map_type) == ApScores(0.0, 0.0, {"a": 0.0})


@pytest.mark.parametrize("map_type", MAP_TYPES)
def test_no_objects(map_type: str) -> None:
    scores = scores_of([objects()], [boxes((0, 0.9, 0, 0, 9, 9))], map_type)
    assert scores == ApScores(0.0, 0.0, {})


@pytest.mark.parametrize("map_type", MAP_TYPES)
def test_perfect_boxes(map_type: str) -> None:
    found = boxes((1, 0.4, *DOG[2:]), (0, 0.9, *CAT[2:]))
    scorer = scorer_of([objects(CAT, DOG)], map_type)
    matches = scorer.match(0, found)
    assert matches.classes.tolist() == [1, 0] and matches.hits.tolist() == [1, 1]
    assert matches.scores.tolist() == found.scores.tolist() and not matches.ignored.any()
    assert scorer.ap([matches]) == pytest.approx(1.0, abs=1e-15)
    assert scorer.name == f"voc_map_{map_type}"


def test_wrong_class_place_and_duplicate() -> None:
    """The duplicate is wrong although it scores higher: boxes claim in the detector's order."""
    rows = [(1, 0.9), (0, 0.3), (0, 0.8)]
    found = boxes(*((c, s, *CAT[2:]) for c, s in rows), (0, 0.7, 60, 60, 79, 79))
    scorer = scorer_of([objects(CAT)])
    assert scorer.match(0, found).hits.tolist() == [0, 1, 0, 0]


def test_overlap_has_to_exceed_one_half() -> None:
    """Sides of 20 pixels: 20 x 10 of 20 x 20 is IoU 1/2 exactly, one row more is enough."""
    scorer = scorer_of([objects(CAT)])
    assert scorer.match(0, boxes((0, 0.9, 10, 10, 29, 19))).hits.tolist() == [0]
    assert scorer.match(0, boxes((0, 0.9, 10, 10, 29, 20))).hits.tolist() == [1]


def test_claims_the_best_object_even_when_it_is_taken() -> None:
    """ppdet never falls back to the second best object."""
    near = (0, 0, 10, 12, 29, 31)
    found = boxes((0, 0.9, *CAT[2:]), (0, 0.8, 10, 10, 29, 30), (0, 0.7, *near[2:]))
    assert scorer_of([objects(CAT, near)]).match(0, found).hits.tolist() == [1, 0, 1]


def test_of_equal_overlaps_the_first_object_is_claimed() -> None:
    scorer = scorer_of([objects((0, 0, 0, 0, 19, 19), (0, 0, 4, 0, 23, 19))])
    between = (0, 0.9, 2, 0, 21, 19)
    assert scorer.match(0, boxes(between, (0, 0.8, 0, 0, 19, 19))).hits.tolist() == [1, 0]
    assert scorer.match(0, boxes(between, (0, 0.8, 4, 0, 23, 19))).hits.tolist() == [1, 1]


@pytest.mark.parametrize("map_type", MAP_TYPES)
def test_difficult_objects_neither_help_nor_hurt(map_type: str) -> None:
    difficult = (0, 1, 50, 10, 69, 29)
    found = boxes((0, 0.9, *difficult[2:]), (0, 0.8, *difficult[2:]), (0, 0.7, *CAT[2:]))
    scorer = scorer_of([objects(CAT, difficult)], map_type)
    matches = scorer.match(0, found)
    assert matches.hits.tolist() == [0, 0, 1] and matches.ignored.tolist() == [1, 1, 0]
    assert scorer.ap([matches]) == pytest.approx(1.0, abs=1e-15)


def test_objects_after_padding_do_not_count() -> None:
    """ppdet reads up to the first box of zeros."""
    scorer = scorer_of([objects(CAT, (0, 0, 0, 0, 0, 0), DOG)])
    assert scorer.match(0, boxes((1, 0.9, *DOG[2:]))).hits.tolist() == [0]
    assert scorer.ap([scorer.match(0, boxes((0, 0.9, *CAT[2:])))]) == pytest.approx(1.0)


def test_only_the_first_images_count() -> None:
    batch = {
        key: np.concatenate([objects(CAT)[key]] * 3) if key == "scale_factor" else value * 3
        for key, value in objects(CAT).items()
    }
    scorer = VocScorer(CLASSES, num_images=2)
    scorer.add_batch(batch)
    scorer.add_batch(batch)
    assert scorer.num_images == 2
    assert scorer.ap([scorer.match(i, boxes((0, 0.9, *CAT[2:]))) for i in (0, 1)]) == 1.0


# Hit, miss, hit with two objects: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
@pytest.mark.parametrize(
    ("map_type", "expected"), [("11point", (6 + 5 * 2 / 3) / 11), ("integral", 0.5 + 0.5 * 2 / 3)]
)
def test_average_precision_by_hand(map_type: str, expected: float) -> None:
    assert average_precision(np.array([], np.uint16), 2, map_type) == 0.0
    assert average_precision(np.array([1, 0, 1], np.uint16), 2, map_type) == pytest.approx(expected)


def test_classes_that_the_detector_lacks() -> None:
    scorer = VocScorer(CLASSES)
    with pytest.raises(DataError, match="object has class 4; expected 0 to 3"):
        scorer.add_batch(objects((4, 0, 1, 1, 2, 2)))
    scorer.add_batch(objects(CAT))
    with pytest.raises(DataError, match="box has class 4; expected 0 to 3"):
        scorer.match(0, boxes((4, 0.9, 1, 1, 2, 2)))
    for unknown in (-1, 1):
        with pytest.raises(ValueError, match=f"image {unknown} requested; 1 images were added"):
            scorer.match(unknown, boxes())


def test_unknown_map_type() -> None:
    with pytest.raises(ConfigError, match="'12point' is unknown; did you mean '11point'"):
        VocScorer(CLASSES, "12point")


def random_image(random: np.random.Generator, fractions: bool) -> tuple[dict, Detections]:
    """Objects and boxes that crowd together, with ties of scores and of overlaps."""
    count = int(random.integers(0, 6))
    corners = random.integers(0, 40, (count, 2)) + fractions * random.random((count, 2))
    sides = random.integers(0, 25, (count, 2)) + fractions * random.random((count, 2))
    table = np.column_stack(
        [random.integers(0, 3, count), random.random(count) < 0.3, corners, corners + sides]
    )
    scale = tuple(random.random(2) + 0.3) if fractions else (1.0, 1.0)
    near = table[random.integers(0, count, 12 if count else 0)][:, [0, 0, 2, 3, 4, 5]]
    near[:, 2:] += random.integers(-3, 4, near[:, 2:].shape) * (1.0 if not fractions else 0.7)
    far = random.integers(0, 60, (4, 6)).astype(float)
    far[:, 0] = random.integers(-1, CLASSES, 4)
    found = np.concatenate([near, far])[: random.integers(0, 17)]
    found[:, 1] = random.integers(1, 6, len(found)) / 5
    return objects(*table, scale=scale), boxes(*random.permutation(found))


@pytest.mark.parametrize("map_type", MAP_TYPES)
@pytest.mark.parametrize("fractions", [False, True])
def test_equals_ppdet(labels: Path, map_type: str, fractions: bool) -> None:
    random = np.random.default_rng(7)
    values = set()
    for _ in range(60):
        size = random.integers(1, 9)
        images, found = zip(*(random_image(random, fractions) for _ in range(size)))
        expected = ppdet_scores(labels, images, found, map_type)
        scores = scores_of(images, found, map_type)
        assert scores.ap == scores.ap50 == pytest.approx(expected.ap, abs=1e-12)
        assert scores.per_class == pytest.approx(expected.per_class, abs=1e-12)
        values.add(expected.ap)
    assert len(values) > 30


@pytest.mark.parametrize("map_type", MAP_TYPES)
def test_repeated_images_equal_a_data_set_that_repeats_them(labels: Path, map_type: str) -> None:
    random = np.random.default_rng(8)
    images, found = zip(*(random_image(random, True) for _ in range(8)))
    scorer = scorer_of(images, map_type)
    matches = [scorer.match(i, rows) for i, rows in enumerate(found)]
    for _ in range(20):
        drawn = random.integers(0, 8, random.integers(1, 13))
        value = scorer.ap([matches[i] for i in drawn], drawn)
        resampled = [(images[i], found[i]) for i in sorted(drawn)]
        expected = ppdet_scores(labels, *zip(*resampled), map_type)
        assert value == pytest.approx(expected.ap, abs=1e-12)
    assert scorer.ap(matches) == scorer.ap(matches[::-1], range(7, -1, -1))


@pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) >= "2.0.0",
    reason="numpy 2 computes in ppdet's code with 32 bits what earlier ones compute with 64",
)
def test_overlaps_to_the_bit() -> None:
    """Objects are float32, as a reader leaves them; edges of both coincide now and then."""
    random = np.random.default_rng(9)
    truth = (random.random((40, 4)) * 30).astype(np.float32)
    truth[:, 2:] += truth[:, :2]
    found = (random.random((60, 4)) * 30).astype(np.float32)
    found[:50, 2:] += found[:50, :2]  # the last ten may be inside out
    found[random.random(found.shape) < 0.2] = truth[0, 1]
    found[::7] = truth[: len(found[::7])]
    found[1::7, :2] = truth[: len(found[1::7]), :2] - 1
    found[1::7, 2:] = truth[: len(found[1::7]), 2:] + 1
    item, box = np.divmod(np.arange(40 * 60), 60)
    expected = [max(0.0, jaccard_overlap(found[b].tolist(), truth[i])) for i, b in zip(item, box)]
    assert ppdet_overlaps(truth[item], found[box]).tolist() == expected
    assert np.count_nonzero(expected) > 500
