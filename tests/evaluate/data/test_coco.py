"""COCO's annotation files, with one fault each, and what is filled in."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from slim_det.core.errors import DataError
from slim_det.evaluate.data import coco
from slim_det.evaluate.data.check import check_dataset
from tests.support import Config

WIDTH, HEIGHT = 60, 40
CONTENT: dict[str, Any] = {
    "images": [
        {"id": 3, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
        {"id": 5, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 9, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 30, 20], "area": 9.5, "iscrowd": 0},  # noqa: E501
        {"id": 2, "image_id": 5, "category_id": 1, "bbox": [4, 5, 6.5, 7], "area": 4, "iscrowd": 0},
        {"id": 4, "image_id": 5, "category_id": 1, "bbox": [4, 5, 6, 7], "area": 42, "iscrowd": 1},
    ],
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.jpg")
    return tmp_path


def check(root: Path, content: Any) -> int:
    (root / "train.json").write_text(json.dumps(content))
    settings = {"name": "COCODataSet", "dataset_dir": str(root), "anno_path": "train.json"}
    return check_dataset(Config(TrainDataset=settings, num_classes=2), "TrainDataset")


def edited(edit: Callable[[dict], Any]) -> dict:
    content = copy.deepcopy(CONTENT)
    edit(content)
    return content


def test_sound(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("slim_det").propagate = True
    assert check(root, CONTENT) == 2
    assert not caplog.messages


def annotation(**changes: Any) -> Callable[[dict], None]:
    return lambda content: content["annotations"][1].update(changes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: c["annotations"][0].pop("bbox"), "1 missing 'bbox': annotations[0] bbox; expected [x, y, width, height]"),  # noqa: E501
        (annotation(bbox=[1, 2, 3]), "1 invalid 'bbox': annotations[1] bbox: [1, 2, 3]; expected"),
        (annotation(bbox=[]), "1 invalid 'bbox': annotations[1] bbox: []"),
        (annotation(bbox=[1, 2, "3", 4]), "1 invalid 'bbox': annotations[1] bbox: [1, 2, '3', 4]"),
        (annotation(bbox=[1, 2, float("nan"), 4]), "1 invalid 'bbox': annotations[1] bbox"),
        (annotation(bbox=[9, 9, -5, 2]), "1 box with a negative side: annotations[1] [9, 9, -5, 2] of 60x40"),  # noqa: E501
        (annotation(bbox=[61, 9, 5, 2]), "1 box outside its image: annotations[1] [61, 9, 5, 2] of 60x40"),  # noqa: E501
        (annotation(category_id=7), "1 unknown category_id: annotations[1] 7; expected the id of a category"),  # noqa: E501
        (annotation(image_id=7), "1 unknown image_id: annotations[1] 7; expected the id of an image"),  # noqa: E501
        (annotation(id=1), "1 id of annotations that occurs again: 1 (2 times)"),
        (annotation(image_id="5"), "1 invalid 'image_id': annotations[1] image_id: '5'; expected a whole number"),  # noqa: E501
        (annotation(id=None), "1 invalid 'id': annotations[1] id: None"),
        (annotation(iscrowd=2), "1 invalid 'iscrowd': annotations[1] iscrowd: 2; expected 0 or 1"),
        (lambda c: c["images"][1].update(id=3), "1 id of images that occurs again: 3 (2 times)"),
        (lambda c: c["images"][1].update(id="5"), "1 invalid 'id': images[1] id: '5'"),
        (lambda c: c["images"][1].update(width=61), "1 image of another size than stated: 'b.jpg' 61x40, it is 60x40"),  # noqa: E501
        (lambda c: c["images"][1].pop("file_name"), "1 missing 'file_name': images[1] file_name"),
        (lambda c: c["images"][1].update(file_name="c.jpg"), "1 missing image: '{root}/c.jpg'"),
        (lambda c: c["categories"][1].update(name="cat"), "1 name of several categories: 'cat'; expected a name for each"),  # noqa: E501
        (lambda c: c["categories"][1].update(name=""), "1 invalid 'name': categories[1] name: ''"),
        (lambda c: c["categories"][1].update(name="\ud800"), "1 invalid 'name': categories[1] name: '\\ud800'"),  # noqa: E501
        (annotation(id=2**63), "1 invalid 'id': annotations[1] id: 9223372036854775808; expected a whole number of 64"),  # noqa: E501
        (lambda c: c["images"][1].update(id=2**70), "1 invalid 'id': images[1] id: "),
        (annotation(area=1e11), "1 area above 1e10: annotations[1] 1e+11"),
        (lambda c: c["annotations"].__setitem__(1, [3]), "1 invalid 'annotations': annotations[1]: [3]; expected a list of entries"),  # noqa: E501
        (lambda c: c["annotations"].clear(), "none of them empty; annotations hold nothing"),
        (lambda c: c["categories"][1].update(id=1), "1 id of categories that occurs again: 1 (2 times)"),  # noqa: E501
        (lambda c: c.update(images={}), "is not a COCO annotation file"),
        (lambda c: c.update(images=3), "1 invalid 'images': images: 3; expected a list"),
        (lambda c: c.pop("annotations"), "is not a COCO annotation file; expected images, categories and annotations"),  # noqa: E501
        (lambda c: [entry.update(iscrowd=1) for entry in c["annotations"]], "has no object that counts"),  # noqa: E501
    ],
)  # fmt: skip
def test_faults(root: Path, edit: Callable[[dict], Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        check(root, edited(edit))
    line = str(caught.value)
    assert "\n" not in line and line.startswith(f"TrainDataset: '{root}/train.json'")
    assert said.format(root=root) in line


@pytest.mark.parametrize("content", [[], 3, "text", None, {}])
def test_files_of_another_kind(root: Path, content: Any) -> None:
    with pytest.raises(DataError, match="is not a COCO annotation file"):
        check(root, content)
    with pytest.raises(DataError, match="is not a COCO annotation file"):
        (root / "train.json").write_bytes(b"\xff\xfe")
        coco.read_coco(root / "train.json", coco.Findings())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda c: [entry.pop("area") for entry in c["annotations"]], "3 annotations without area"),
        (annotation(area=0), "1 annotation without area: annotations[1]; width x height is taken"),
        (annotation(iscrowd=None), "1 annotation without iscrowd"),
        (lambda c: [entry.pop("id") for entry in c["annotations"]], "3 annotations without id"),
        (annotation(id=0), "1 annotation with id 0"),
        (lambda c: c["images"][0].pop("width"), "1 image without width and height: 'a.jpg'"),
        (lambda c: c["images"][0].update(height=-1), "1 image without width and height: 'a.jpg'"),
        (annotation(ignore=1), "1 annotation with ignore: 1: annotations[1]; an evaluation counts"),
        (annotation(bbox=[-2, 5, 6, 5]), "1 box partly outside its image: annotations[1] [-2, 5, 6, 5] of 60x40; they are used as"),  # noqa: E501
        (annotation(bbox=[4, 5, 56.9, 5]), ""),
        (lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}), "1 annotation that repeats another: annotations[3], as annotations[0]; each counts"),  # noqa: E501
        (annotation(bbox=[4, 5, 6, 0]), "1 box without area: annotations[1] [4, 5, 6, 0] of 60x40; they"),  # noqa: E501
    ],
)  # fmt: skip
def test_remarks(
    root: Path, edit: Callable[[dict], Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("slim_det").propagate = True
    assert check(root, edited(edit)) == 2
    assert said in caplog.text


def test_what_is_filled_in() -> None:
    """Only what is missing, and no id that exists; pycocotools takes 0 for none."""
    content = {
        "annotations": [
            {"bbox": [1, 2, 3, 4.0]},
            {"id": 7, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 1},
            {"id": 0, "bbox": [1, 2, 3, 4], "area": 0},
            {"keypoints": []},
        ]
    }
    coco.fill_in(content)
    assert content["annotations"] == [
        {"id": 8, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"id": 7, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 1},
        {"id": 9, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"keypoints": []},
    ]
    before = copy.deepcopy(content)
    coco.fill_in(content)
    assert content == before
    coco.fill_in({})


def test_objects_that_count() -> None:
    content = copy.deepcopy(CONTENT)
    file = coco.CocoFile(Path(), *(content[key] for key in ("images", "categories", "annotations")))
    assert coco.countable_objects(file, training=False) == {"cat": 1, "dog": 1}
    assert coco.images_without_objects(file, training=True) == []
    file.annotations[1]["ignore"] = 1
    assert coco.countable_objects(file, training=False) == {"cat": 1, "dog": 1}
    assert coco.images_without_objects(file, training=False) == []
    assert coco.countable_objects(file, training=True) == {"dog": 1}
    assert coco.images_without_objects(file, training=True) == ["b.jpg"]
    file.annotations.pop(1)
    assert coco.images_without_objects(file, training=False) == ["b.jpg"]


def test_what_json_reads_in_silence(root: Path) -> None:
    """The last of two keys wins, and a byte order mark stops pycocotools."""
    text = json.dumps(CONTENT)
    for content, said in (
        (text[:-1] + ', "annotations": []}', "the key 'annotations' occurs twice in one object"),
        ("\ufeff" + text, "it begins with a byte order mark; expected UTF-8 without one"),
    ):
        (root / "train.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            coco.read_coco(root / "train.json", coco.Findings())
