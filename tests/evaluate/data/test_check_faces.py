"""Annotations of faces are checked as ppdet's reader will take them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from slim_det.core.errors import DataError
from slim_det.evaluate.data.check import check_dataset
from tests.blazeface import draw_faces


class Config(dict):
    """Settings by name and by attribute, as ppdet's are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def faces(root: Path, name: str = "TrainDataset", **changes: Any) -> Config:
    settings = {
        "name": "WIDERFaceDataSet",
        "dataset_dir": str(root),
        "image_dir": "images",
        "anno_path": "train.txt",
        **changes,
    }
    return Config({name: settings}, num_classes=1, metric="WiderFace")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Drawn faces that a test may damage: 3 images to train on, 2 to evaluate."""
    return draw_faces(tmp_path / "own", num_train=3, num_val=2)


def refusal(cfg: Config, name: str = "TrainDataset") -> str:
    with pytest.raises(DataError) as caught:
        check_dataset(cfg, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_data_set(own: Path) -> None:
    assert check_dataset(faces(own), "TrainDataset") == 3
    assert check_dataset(faces(own, "EvalDataset", anno_path="val.txt"), "EvalDataset") == 2
    assert check_dataset(faces(own, sample_num=2), "TrainDataset") == 2


def test_metric_and_classes(own: Path) -> None:
    cfg = faces(own, "EvalDataset")
    cfg["metric"] = "COCO"
    assert refusal(cfg, "EvalDataset") == (
        "EvalDataset: metric COCO does not fit a WIDERFaceDataSet; use WiderFace"
    )
    cfg = faces(own)
    cfg["num_classes"] = 2
    assert refusal(cfg).endswith("has 1 classes (face), num_classes is 2")


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        ("", "train.txt' is empty"),
        ("0--train/face_0.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n", "train.txt' has no faces"),
        ("0--train/face_0.jpg\n2\n1 2 30 40 0 0 0 0 0 0\n", "line 4: expected 2 rows of faces"),
        ("0--train/face_0.jpg\n1\n1 2 3O 40 0 0 0 0 0 0\n", "line 3: expected 10 finite numbers"),
        ("0--train/face_0.jpg\n1\n1 2 -3 40 0 0 0 0 0 0\n", "line 3: expected a width"),
        (
            "0--train/face 0.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n",
            "line 1: ppdet does not read '0--train/face 0.jpg'",
        ),
        ("0--train/face_0.jpg \n1\n1 2 3 40 0 0 0 0 0 0\n", "expected a name without spaces"),
        ("0--train/face_0.gif\n1\n1 2 3 40 0 0 0 0 0 0\n", "ends in .jpg, .jpeg, .png, .bmp"),
        ("0--train/face_0.jpg\n1\n1  2 3 40 0 0 0 0 0 0\n", "ppdet cannot read"),
        ("0--train/face_0.Jpg\n1\n1 2 3 40 0 0 0 0 0 0\n", "line 1: ppdet does not read"),
    ],
)
def test_annotations(own: Path, content: str, phrase: str) -> None:
    (own / "train.txt").write_text(content)
    line = refusal(faces(own))
    assert line.startswith("TrainDataset: ") and phrase in line


def test_name_that_is_overlooked_among_others(own: Path) -> None:
    """ppdet would give its faces to the image before it."""
    more = "0--train/a b.jpg\n1\n1 2 30 40 0 0 0 0 0 0\n"
    (own / "train.txt").write_text((own / "train.txt").read_text() + more)
    assert "ppdet does not read '0--train/a b.jpg'" in refusal(faces(own))


def test_images(own: Path) -> None:
    image = own / "images" / "0--train" / "face_1.jpg"
    image.write_text("text")
    assert refusal(faces(own)) == f"'{image}' is not a readable image"
    image.unlink()
    assert refusal(faces(own)) == f"image '{image}' does not exist"


def test_faces_without_area_are_counted(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The row of zeros of an image without faces is not one of them."""
    rows = ["5 5 0 9 0 0 0 0 0 0", "5 5 9 0 0 0 0 0 0 0", "5 5 9 9 0 0 0 0 0 0"]
    lines = ["0--train/face_0.jpg", "3", *rows, "0--train/face_1.jpg", "0", "0 0 0 0 0 0 0 0 0 0"]
    (own / "train.txt").write_text("\n".join(lines) + "\n")
    logging.getLogger("slim_det").propagate = True
    with caplog.at_level(logging.WARNING, "slim_det"):
        assert check_dataset(faces(own), "TrainDataset") == 2
    assert caplog.messages == [
        "TrainDataset: 2 faces have zero width or height and are not learned"
    ]


def test_ground_truth(own: Path) -> None:
    """For evaluation only, and checked before anything is run."""
    cfg = faces(own, "EvalDataset", anno_path="val.txt")
    cfg["widerface_ground_truth"] = str(own / "val.txt")
    assert check_dataset(cfg, "EvalDataset") == 2
    cfg["widerface_ground_truth"] = str(own / "train.txt")
    assert "image '0--val/face_0' is not in the ground truth" in refusal(cfg, "EvalDataset")
    cfg["widerface_ground_truth"] = str(own / "gone")
    assert f"ground truth '{own}/gone' does not exist" in refusal(cfg, "EvalDataset")
    cfg["TrainDataset"] = {**cfg["EvalDataset"], "anno_path": "train.txt"}
    assert check_dataset(cfg, "TrainDataset") == 3
