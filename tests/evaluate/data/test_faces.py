"""Annotations of faces in WIDER FACE's format."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slim_det.core.errors import DataError
from slim_det.evaluate.data.check import check_dataset
from slim_det.evaluate.data.image_files import decoded_size_hw
from slim_det.evaluate.data.records import read_face_records
from slim_det.evaluate.widerface.truth import faces_of
from tests.blazeface import draw_faces
from tests.support import Config


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
        ("0--train/face_0.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n", "train.txt' has no object that counts"),
        ("0--train/face_0.jpg\n2\n1 2 30 40 0 0 0 0 0 0\n", "line 4: expected 2 rows of faces"),
        ("0--train/face_0.jpg\n1\n1 2 3O 40 0 0 0 0 0 0\n", "line 3: expected 10 finite numbers"),
        ("0--train/face_0.jpg\n1\n1 2 -3 40 0 0 0 0 0 0\n", "line 3: expected a width"),
        ("0--train/face 0.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n", "1 missing image: '"),
        (
            "0--train/face_0.jpg\n0\n1 2 3 40 0 0 0 0 0 0\n",
            "line 3: expected the name of an image, found '1 2 3 40 0",
        ),
        ("0--train/face_0.jpg\n0\n0 0 junk\n", "line 3: expected the name of an image"),
        ("0--train/face_0.jpg\n" + "9" * 5000 + "\n", "line 2: expected the number of faces of"),
        ("0--train/face_0.jpg\n1\n1 2 0 40 0 0 0 0 0 0\n", "has no object that counts"),
        (
            "../images/0--train/face_0.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n0--train/face_0.jpg\n0\n",
            "has the image '0--train/face_0' twice",
        ),
        ("../face_0.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n", "face_0.jpg' is not inside image_dir"),
        ("3 4 face.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n", "1 missing image: '"),
        ("0--train/face_0.jpg\n1\n900 2 3 40 0 0 0 0 0 0\n", "1 box outside its image: line 3 "),
        ("0--train/face_0.jpg\n1\n1 2 3 40 0 0 0 0 0 0\n" * 2, "'0--train/face_0' twice"),
    ],
)
def test_annotations(own: Path, content: str, phrase: str) -> None:
    (own / "train.txt").write_text(content)
    line = refusal(faces(own))
    assert line.startswith("TrainDataset: ") and phrase in line


def test_what_ppdet_does_not_read(own: Path) -> None:
    """Names with spaces, other suffixes and several spaces between numbers are no fault."""
    folder = own / "images" / "0--train"
    (folder / "face_0.jpg").rename(folder / "a b.JpG")
    lines = [
        "0--train/a b.JpG",
        "1",
        "1  2 30 40 0 0 0 0 0 0 ",
        "0--train/face_1.jpg",
        "1",
        "1 2 3 4",
    ]
    (own / "train.txt").write_text("\n".join(lines[:3]) + "\n")
    assert check_dataset(faces(own), "TrainDataset") == 1
    (own / "train.txt").write_text("\n".join(lines) + "\n")
    assert "expected 10 finite numbers, found '1 2 3 4'" in refusal(faces(own))


def test_images(own: Path) -> None:
    image = own / "images" / "0--train" / "face_1.jpg"
    image.write_text("text")
    where = f"TrainDataset: '{own}/train.txt': 1"
    assert refusal(faces(own)).startswith(f"{where} unreadable image: '{image}' is not an image;")
    image.unlink()
    assert refusal(faces(own)) == f"{where} missing image: '{image}'; expected a file"


def test_faces_without_area_are_counted(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The row of zeros of an image without faces is not one of them."""
    rows = ["5 5 0 9 0 0 0 0 0 0", "5 5 9 0 0 0 0 0 0 0", "5 5 9 9 0 0 0 0 0 0"]
    lines = ["0--train/face_0.jpg", "3", *rows, "0--train/face_1.jpg", "0", "0 0 0 0 0 0 0 0 0 0"]
    (own / "train.txt").write_text("\n".join(lines) + "\n")
    logging.getLogger("slim_det").propagate = True
    with caplog.at_level(logging.WARNING, "slim_det"):
        assert check_dataset(faces(own), "TrainDataset") == 2
    where = f"TrainDataset: '{own}/train.txt': "
    assert caplog.messages == [
        f"{where}2 faces of zero width or height: line 3, line 4; they are not learned",
        f"{where}1 image without objects: '0--train/face_1.jpg'; trained as background",
    ]


def test_faces_that_are_marked_invalid(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["5 5 9 9 0 0 0 1 0 0", "5 5 9 9 0 0 0 0 2 0"]
    text = "\n".join(["0--train/face_0.jpg", "2", *rows])
    (own / "train.txt").write_text("\ufeff" + text + "\n", encoding="utf-8")
    logging.getLogger("slim_det").propagate = True
    assert check_dataset(faces(own), "TrainDataset") == 1
    assert "1 face marked invalid: line 3; they are used like the others" in caplog.text


def test_faces_partly_outside(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are counted, and end at the edge for the reader and for the ground truth alike."""
    height, width = decoded_size_hw(own / "images" / "0--train" / "face_0.jpg")
    rows = [
        f"-4 5 10 {height} 0 0 0 0 0 0",
        "5 5 9 9 0 0 0 0 0 0",
        f"{width - 3} 2 9 9 0 0 0 0 0 0",
    ]
    (own / "train.txt").write_text("\n".join(["0--train/face_0.jpg", "3", *rows]) + "\n")
    logging.getLogger("slim_det").propagate = True
    with caplog.at_level(logging.WARNING, "slim_det"):
        assert check_dataset(faces(own), "TrainDataset") == 1
    assert "2 boxes partly outside their images: line 3 -4 5 6" in caplog.text
    dataset = SimpleNamespace(
        dataset_dir=str(own), image_dir="images", anno_path="train.txt", sample_num=-1,
        data_fields=["image", "gt_bbox", "gt_class"], get_anno=lambda: str(own / "train.txt"),
    )  # fmt: skip
    read_face_records(dataset)
    edges = [[0, 5, 6, height], [5, 5, 14, 14], [width - 3, 2, width, 11]]
    assert dataset.roidbs[0]["gt_bbox"].tolist() == edges
    _, truth = faces_of(dataset)
    assert truth.faces[0].tolist() == [[0, 5, 6, height - 5], [5, 5, 9, 9], [width - 3, 2, 3, 9]]
    hard = truth.counted[0][2].tolist()
    assert hard == [True, False, False]


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
