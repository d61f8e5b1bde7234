"""AP of faces from stored matches: hand-made boxes, and the figures of the same boxes as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ppdet.data.source.widerface import WIDERFaceDataSet

from slim_det.core.errors import DataError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.widerface.files import xywh_of
from slim_det.evaluate.widerface.matching import FaceScorer
from slim_det.evaluate.widerface.scores import score_predictions
from slim_det.evaluate.widerface.truth import faces_of
from tests.detections import found_in as rows
from tests.detections import rows_of

# A face that counts in every setting; one in medium and hard, one in hard alone; none.
FACES = {
    "0--Street/a.jpg": [(10, 10, 50, 60)],
    "0--Street/b.jpg": [(0, 0, 30, 40), (60, 60, 15, 20)],
    "1--Shop/empty.jpg": [],
}


def write_set(folder: Path, faces: dict[str, list[tuple[int, ...]]]) -> WIDERFaceDataSet:
    lines = []
    for name, boxes in faces.items():
        rows = [" ".join(map(str, (*box, 0, 0, 0, 0, 0, 0))) for box in boxes]
        lines += [name, str(len(boxes)), *(rows or ["0 0 0 0 0 0 0 0 0 0"])]
    (folder / "val.txt").write_text("\n".join(lines) + "\n")
    found = WIDERFaceDataSet(str(folder), "images", "val.txt", ["image"])
    found.parse_dataset()
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> WIDERFaceDataSet:
    return write_set(tmp_path_factory.mktemp("faces"), FACES)


def scorer_of(dataset: Any, limit: int | None = None) -> FaceScorer:
    scorer = FaceScorer(*faces_of(dataset), limit)
    scorer.add_batch(ids(*range(len(dataset.roidbs))))
    return scorer


def ids(*images: int) -> dict[str, np.ndarray]:
    return {"im_id": np.array(images).reshape(-1, 1)}


def box(face: tuple[int, ...], score: float) -> tuple[float, ...]:
    x, y, width, height = face
    return (0.0, score, x, y, x + width - 1, y + height - 1)


PERFECT = [rows(*(box(face, 0.9 - i / 10) for i, face in enumerate(f))) for f in FACES.values()]


def matched(scorer: FaceScorer, found: list[Detections]) -> list[ImageMatches]:
    return [scorer.match(index, boxes) for index, boxes in enumerate(found)]


def test_nothing_found(dataset: WIDERFaceDataSet) -> None:
    scorer = scorer_of(dataset)
    assert scorer.num_images == 3 and scorer.ap([], []) == 0.0
    assert scorer.ap(matched(scorer, [rows()] * 3)) == 0.0


def test_every_face_found(dataset: WIDERFaceDataSet) -> None:
    scorer = scorer_of(dataset)
    assert scorer.ap(matched(scorer, PERFECT)) == pytest.approx(1.0)


def test_bits_are_settings(dataset: WIDERFaceDataSet) -> None:
    """Easy, medium, hard: right where the face counts, ignored where it does not."""
    scorer = scorer_of(dataset)
    high, low = FACES["0--Street/b.jpg"]
    stranger = (0.0, 0.1, 90.0, 0.0, 99.0, 9.0)
    found = scorer.match(1, rows(box(low, 0.3), stranger, box(high, 0.2), box(high, 0.1)))
    assert found.hits.tolist() == [0b100, 0, 0b110, 0]
    assert found.ignored.tolist() == [0b011, 0, 0b001, 0b001]
    assert found.classes.tolist() == [0] * 4
    again = ImageMatches.from_bytes(found.to_bytes())
    assert np.array_equal(again.hits, found.hits) and np.array_equal(again.scores, found.scores)


def test_image_without_faces_judges_nothing(dataset: WIDERFaceDataSet) -> None:
    found = scorer_of(dataset).match(2, rows((0.0, 0.9, 1.0, 1.0, 9.0, 9.0)))
    assert found.hits.tolist() == [0] and found.ignored.tolist() == [0b111]


def test_images_that_are_drawn(dataset: WIDERFaceDataSet) -> None:
    """The first image alone is perfect; drawn twice its face counts twice; the second finds none.

    Of the three faces of a hard setting with the first image drawn twice and the second missed,
    two of four are found, all before anything wrong; of medium two of three, of easy both.
    """
    scorer = scorer_of(dataset)
    first, second = scorer.match(0, PERFECT[0]), scorer.match(1, rows())
    assert scorer.ap([first], [0]) == scorer.ap([first, first], [0, 0]) == pytest.approx(1.0)
    assert scorer.ap([second], [1]) == 0.0
    drawn = scorer.ap([first, second, first], [0, 1, 0])
    assert drawn == pytest.approx((1.0 + 2 / 3 + 2 / 4) / 3)
    with pytest.raises(ValueError, match="matches of 1 images given for 2 images"):
        scorer.ap([first], [0, 1])


def test_only_the_first_images(dataset: WIDERFaceDataSet) -> None:
    """Faces of the others are not missed."""
    scorer = scorer_of(dataset, limit=1)
    assert scorer.num_images == 1
    assert scorer.ap([scorer.match(0, PERFECT[0])]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="image 1 requested; 1 images were added"):
        scorer.match(1, rows())


def test_image_that_comes_twice(dataset: WIDERFaceDataSet) -> None:
    scorer = scorer_of(dataset)
    with pytest.raises(DataError, match="image '0--Street/b' occurs twice") as caught:
        scorer.add_batch(ids(1))
    assert "\n" not in str(caught.value)


def test_ground_truth_of_other_images(dataset: WIDERFaceDataSet, tmp_path: Path) -> None:
    write_set(tmp_path, {"2--Zoo/z.jpg": [(1, 1, 9, 20)]})
    with pytest.raises(DataError, match="image '0--Street/a' is not in the ground truth"):
        faces_of(dataset, str(tmp_path / "val.txt"))
    with pytest.raises(DataError, match="does not exist"):
        faces_of(dataset, str(tmp_path / "none.txt"))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.integers(1, 8))
def test_equals_the_figures_of_files(seed: int, limit: int, tmp_path_factory: Any) -> None:
    """Random faces; boxes near them, doubled, beside them or missing; equal scores too."""
    random = np.random.default_rng(seed)
    faces = {
        f"0--A/{i}.jpg": [tuple(random.integers(0, 80, 4) + 1) for _ in range(random.integers(4))]
        for i in range(limit)
    }
    dataset = write_set(tmp_path_factory.mktemp("random"), faces)
    found = []
    for boxes in faces.values():
        near = [np.array(box(face, 0.0)) for face in boxes if random.random() < 0.8] * 2
        table = np.array(near, np.float32).reshape(-1, 6)
        table[:, 2:] += random.integers(-4, 5, (len(table), 4))
        strangers = random.random((int(random.integers(3)), 6)).cumsum(axis=1) * 30
        table = np.concatenate([table, strangers]).astype(np.float32)
        table[:, 0], table[:, 1] = 0, random.integers(1, 6, len(table)) / 8
        found.append(rows(*table))
    scorer, (names, truth) = scorer_of(dataset), faces_of(dataset)
    files = [xywh_of(rows_of(boxes)[:, [2, 3, 4, 5, 1]]) for boxes in found]
    expected = score_predictions(truth, zip(names, files))
    scores = scorer.scores(matched(scorer, found))
    assert scores.per_class == {s: getattr(expected, s) for s in ("easy", "medium", "hard")}
    assert scores.ap == pytest.approx(sum(scores.per_class.values()) / 3, abs=1e-12)
