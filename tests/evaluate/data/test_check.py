"""A data set is checked before anything is trained on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slim_det.core.errors import DataError
from slim_det.evaluate.data.check import check_dataset, check_image, find_images


class Config(dict):
    """Settings by name and by attribute, as ppdet's are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def coco(root: Path, **changes: Any) -> Config:
    settings = {
        "name": "COCODataSet",
        "dataset_dir": str(root),
        "image_dir": "images",
        "anno_path": "annotations/instances_train.json",
    }
    return Config(TrainDataset={**settings, **changes}, num_classes=4)


def voc(root: Path, **changes: Any) -> Config:
    settings = {"name": "VOCDataSet", "dataset_dir": str(root), "anno_path": "train.txt"}
    return Config(TrainDataset={**settings, **changes}, num_classes=4)


@pytest.fixture
def own(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def refusal(cfg: Config, name: str = "TrainDataset") -> str:
    with pytest.raises(DataError) as caught:
        check_dataset(cfg, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("make", [coco, voc])
def test_good_data_set(shapes: Path, make: Callable[..., Config]) -> None:
    """The number of images, from settings or from ppdet's data set itself."""
    cfg = make(shapes)
    assert check_dataset(cfg, "TrainDataset") == 16
    settings = cfg["TrainDataset"]
    named = type(settings.pop("name"), (SimpleNamespace,), {})
    assert check_dataset(Config(TrainDataset=named(**settings), num_classes=4), "TrainDataset")


def test_other_kinds_are_let_through(shapes: Path) -> None:
    assert check_dataset(coco(shapes, name="MOTDataSet"), "TrainDataset") == 0


@pytest.mark.parametrize("make", [coco, voc])
def test_number_of_classes(shapes: Path, make: Callable[..., Config]) -> None:
    cfg = make(shapes)
    cfg["num_classes"] = 20
    assert refusal(cfg).endswith(
        "has 4 classes (circle, square, triangle, cross), num_classes is 20"
    )


def test_folders_and_files(shapes: Path) -> None:
    gone = shapes / "gone"
    assert refusal(coco(gone)) == f"TrainDataset: dataset_dir '{gone}' does not exist"
    assert "did you mean 'images'?" in refusal(coco(shapes, image_dir="imgs"))
    assert "anno_path" in refusal(coco(shapes, anno_path="annotations"))
    assert refusal(voc(shapes, anno_path=None)).startswith("TrainDataset: no anno_path is given")
    assert "label_list" in refusal(voc(shapes, label_list="labels.txt"))


def test_voc_lists(own: Path) -> None:
    """Each line names an image and a file of objects, and each object a class."""
    lists, labels = own / "train.txt", own / "label_list.txt"
    text = lists.read_text()
    lists.write_text("images/1.jpg\n" + text)
    assert "line 1: expected 'IMAGE XML', found 'images/1.jpg'" in refusal(voc(own))
    lists.write_text("")
    assert "lists no annotated objects" in refusal(voc(own))
    lists.write_text(text)
    labels.write_text("circle\nsquare\ntriangle\ncrows\n")
    assert "unknown class 'cross'; did you mean 'crows'?" in refusal(voc(own))


def test_voc_objects(own: Path) -> None:
    image, name = (own / "train.txt").read_text().split()[:2]
    path = own / name
    path.write_text("<annotation><object>")
    assert f"annotation '{path}' is not XML" in refusal(voc(own))
    path.unlink()
    assert f"annotation '{path}' does not exist" in refusal(voc(own))
    path.write_text("<annotation/>")
    assert check_dataset(voc(own), "TrainDataset") == 16  # one image may be empty
    (own / image).write_text("text")
    assert "is not a readable image" in refusal(voc(own))


@pytest.mark.parametrize("content", [[], {"images": []}, {"images": 3}, {"images": [{}]}])
def test_coco_file_of_another_kind(own: Path, content: Any) -> None:
    (own / "annotations" / "instances_train.json").write_text(json.dumps(content))
    assert "is not a COCO annotation file" in refusal(coco(own))


def test_images_by_content_not_by_name(tmp_path: Path) -> None:
    good, bad = tmp_path / "picture", tmp_path / "text.jpg"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(good, "PNG")
    check_image(good)
    for content in (b"", b"text", b"\xff\xd8\xff"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match="'.*text.jpg' is not a readable image"):
            check_image(bad)
    with pytest.raises(DataError, match="does not exist"):
        check_image(tmp_path / "gone.jpg")


def test_images_of_a_folder_in_order(tmp_path: Path) -> None:
    """Whatever else lies there is passed over; one image wins over the folder."""
    for name in ("b.PNG", "a.jpg", "c.bmp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    found = [Path(path).name for path in find_images(None, str(tmp_path))]
    assert found == ["a.jpg", "b.PNG", "c.bmp"]
    assert find_images(str(tmp_path / "c.bmp"), str(tmp_path)) == [str(tmp_path / "c.bmp")]
