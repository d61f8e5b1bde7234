"""AP of faces in an evaluation: perfect boxes, none, a part of the set, and the files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ppdet.data.source.widerface import WIDERFaceDataSet

from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.detections import parse_detections
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.scorer import ApScores
from slim_det.evaluate.widerface.files import PredictionFolder, image_names, read_prediction
from slim_det.evaluate.widerface.matching import FaceScorer
from slim_det.evaluate.widerface.metric import FaceMetric
from slim_det.evaluate.widerface.truth import faces_of, read_ground_truth
from slim_det.training.checkpoint_saver import metric_value

# Two images with faces of 60, 40 and 20 pixels; one without any.
TRUTH = {
    "0--Street/a.b.jpg": [(10, 10, 50, 60)],
    "1--Shop/c.png": [(0, 0, 30, 40), (60, 60, 15, 20)],
    "1--Shop/empty.jpeg": [],
}
NOTHING = {"bbox": np.array([[-1.0]], np.float32), "bbox_num": np.array([0], np.int32)}


def write_truth(path: Path, truth: dict[str, list[tuple[int, ...]]]) -> Path:
    lines = []
    for name, faces in truth.items():
        rows = [" ".join(map(str, (*face, 0, 0, 0, 0, 0, 0))) for face in faces]
        lines += [name, str(len(faces)), *(rows or ["0 0 0 0 0 0 0 0 0 0"])]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> WIDERFaceDataSet:
    """ppdet's own reader over these annotations; the images themselves are not opened."""
    write_truth(tmp_path / "val.txt", TRUTH)
    found = WIDERFaceDataSet(str(tmp_path), "images", "val.txt", ["image"])
    found.parse_dataset()
    return found


def batch(*images: int) -> dict[str, np.ndarray]:
    return {"im_id": np.array(images).reshape(-1, 1)}


def outputs(*images: list[tuple[float, ...]]) -> dict[str, np.ndarray]:
    """Boxes of a batch: (score, x1, y1, x2, y2) for each image."""
    rows = [(0, *box) for boxes in images for box in boxes]
    return {
        "bbox": np.array(rows, np.float32).reshape(-1, 6),
        "bbox_num": np.array([len(boxes) for boxes in images], np.int32),
    }


def perfect(name: str, score: float = 0.9) -> list[tuple[float, ...]]:
    """Corners such that the width as ppdet writes it is that of the annotation."""
    faces = TRUTH[name]
    return [(score - i / 10, x, y, x + w - 1, y + h - 1) for i, (x, y, w, h) in enumerate(faces)]


STREET, SHOP, EMPTY = TRUTH


def evaluated(
    dataset: Any, *found: tuple[dict, dict], truth: str | None = None
) -> tuple[ApScores, str | None]:
    """The figures, and what the settings are."""
    scorer = FaceScorer(*faces_of(dataset, truth))
    matches: list[ImageMatches] = []
    for images, boxes in found:
        matches += scorer.take(images, parse_detections(boxes))
    return scorer.scores(matches), scorer.bands


def test_nothing_found(dataset: WIDERFaceDataSet) -> None:
    scores, bands = evaluated(dataset, *((batch(i), NOTHING) for i in range(3)))
    assert scores == ApScores(0.0, 0.0, {"easy": 0.0, "medium": 0.0, "hard": 0.0})
    assert bands == "height>=50/30/10 px"


def test_perfect_boxes_in_batches(dataset: WIDERFaceDataSet) -> None:
    """Of two images, the second before the first, and of one without a face."""
    both = outputs(perfect(SHOP, 0.8), perfect(STREET))
    scores, _ = evaluated(dataset, (batch(1, 0), both), (batch(2), NOTHING))
    assert scores == ApScores(1.0, 1.0, {"easy": 1.0, "medium": 1.0, "hard": 1.0})


def test_settings_by_height(dataset: WIDERFaceDataSet) -> None:
    """Only the face of 60 pixels: all of easy, one of two medium, one of three hard."""
    found = (batch(0, 1, 2), outputs(perfect(STREET), [], []))
    scores, _ = evaluated(dataset, found)
    assert list(scores.per_class.values()) == pytest.approx([1, 1 / 2, 1 / 3])
    assert scores.ap == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_images_that_never_come_count(dataset: WIDERFaceDataSet) -> None:
    scores, _ = evaluated(dataset, (batch(0), outputs(perfect(STREET))))
    assert scores.per_class["hard"] == pytest.approx(1 / 3)


def test_part_of_the_ground_truth(
    dataset: WIDERFaceDataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are left out and the label says so."""
    more = write_truth(tmp_path / "more.txt", {"x/y.jpg": [(0, 0, 90, 90)], **TRUTH})
    found = (batch(0, 1, 2), outputs(perfect(STREET), perfect(SHOP, 0.8), []))
    with caplog.at_level(logging.WARNING, "slim_det"):
        logging.getLogger("slim_det").propagate = True
        scores, bands = evaluated(dataset, found, truth=str(more))
    assert scores.ap == 1.0 and bands == "height>=50/30/10 px, 3 of 4 images"
    assert "3 of the 4 images of the ground truth are evaluated" in caplog.text


def test_ground_truth_of_other_images(dataset: WIDERFaceDataSet, tmp_path: Path) -> None:
    other = write_truth(tmp_path / "other.txt", {STREET: TRUTH[STREET], EMPTY: []})
    with pytest.raises(DataError) as caught:
        faces_of(dataset, str(other))
    assert str(caught.value) == (
        f"EvalDataset: image '1--Shop/c' is not in the ground truth '{other}'; expected one of its "
        "2 images, such as '0--Street/a.b'"
    )
    (tmp_path / "mat").mkdir()
    with pytest.raises(DataError, match="lacks wider_face_val.mat"):
        faces_of(dataset, str(tmp_path / "mat"))


def test_official_settings(shared: Path, tmp_path: Path) -> None:
    """The first images of the data set itself, every one of their faces found; none is easy."""
    folder = shared / "data" / "wider_face_ground_truth"
    if not folder.is_dir():
        pytest.skip("needs the official ground truth")
    truth = read_ground_truth(folder)
    faces = {
        f"{name}.jpg": [tuple(map(int, row)) for row in rows]
        for name, rows in zip(truth.names[:3], truth.faces)
    }
    write_truth(tmp_path / "val.txt", faces)
    dataset = WIDERFaceDataSet(str(tmp_path), "images", "val.txt", ["image"])
    dataset.parse_dataset()
    found = [[(0.9, x, y, x + w - 1, y + h - 1) for x, y, w, h in rows] for rows in faces.values()]
    scores, bands = evaluated(dataset, (batch(0, 1, 2), outputs(*found)), truth=str(folder))
    assert bands == "official, 3 of 3226 images"
    assert scores.per_class == pytest.approx({"easy": 0.0, "medium": 1.0, "hard": 1.0})
    assert scores.notes == ("no face counts in easy: AP 0",)


def test_names_keep_their_dots(dataset: WIDERFaceDataSet) -> None:
    assert image_names(dataset) == ["0--Street/a.b", "1--Shop/c", "1--Shop/empty"]


def test_files_of_predictions(dataset: WIDERFaceDataSet, tmp_path: Path) -> None:
    """Written at the end and not before, best box first; a second run takes their place."""
    folder = tmp_path / "made" / "pred"
    found = parse_detections(outputs(perfect(STREET), perfect(SHOP)[::-1], []))
    saved = PredictionFolder(str(folder), dataset)
    saved.update(batch(0, 1, 2), found)
    assert not folder.exists()
    saved.write()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {"0--Street/a.b.txt", "1--Shop/c.txt", "1--Shop/empty.txt"}
    rows = read_prediction(folder / "1--Shop" / "c.txt")
    assert rows == pytest.approx(np.array([[0, 0, 30, 40, 0.9], [60, 60, 15, 20, 0.8]]))
    assert read_prediction(folder / "1--Shop" / "empty.txt").shape == (0, 5)
    again = PredictionFolder(str(folder), dataset)
    again.update(batch(0, 1, 2), parse_detections(outputs([], [], [])))
    again.write()
    assert read_prediction(folder / "1--Shop" / "c.txt").shape == (0, 5)


def test_folder_that_holds_something_else(dataset: WIDERFaceDataSet, tmp_path: Path) -> None:
    folder = tmp_path / "pred"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds 'notes.txt', not a prediction of these"):
        PredictionFolder(str(folder), dataset)
    with pytest.raises(ConfigError, match="notes.txt' is a file; expected a folder"):
        PredictionFolder(str(folder / "notes.txt"), dataset)
    assert (folder / "notes.txt").read_text() == "mine"


def test_box_that_is_not_finite(dataset: WIDERFaceDataSet) -> None:
    with pytest.raises(DataError, match="image '0--Street/a.b': detection 0"):
        evaluated(dataset, (batch(0), outputs([(0.5, 1, 2, np.inf, 4)])))


def test_as_ppdet_uses_it(dataset: WIDERFaceDataSet) -> None:
    """The mean comes first, which decides the best model; a second evaluation starts anew."""
    metric = FaceMetric(dataset)
    metric.reset()
    assert metric_value(metric) == 0.0
    for boxes, expected in (
        (outputs(perfect(STREET), [], []), [11 / 18, 1, 1 / 2, 1 / 3]),
        (outputs(perfect(STREET), perfect(SHOP, 0.8), []), [1, 1, 1, 1]),
    ):
        metric.update(batch(0, 1, 2), boxes)
        metric.accumulate()
        metric.log()
        assert metric.get_results() == {"widerface": pytest.approx(expected)}
        assert metric_value(metric) == pytest.approx(expected[0])
        metric.reset()


def test_another_detector_in_place_of_the_trainers(dataset: WIDERFaceDataSet) -> None:
    found = parse_detections(outputs(perfect(STREET), perfect(SHOP), []))
    metric = FaceMetric(dataset, detect=lambda data: found)
    metric.update(batch(0, 1, 2), NOTHING)
    metric.accumulate()
    assert metric.get_results()["widerface"] == [1.0, 1.0, 1.0, 1.0]
