"""Images and annotations that cannot be used: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Refused = Callable[..., str]


@pytest.fixture
def own_shapes(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def own(folder: Path) -> list[str]:
    return ["-o", f"TrainDataset.dataset_dir={folder}", f"EvalDataset.dataset_dir={folder}"]


def test_missing_folders(refused: Refused, tiny: Path, unpruned: Path, own_shapes: Path) -> None:
    line = refused("train", "-c", tiny, *own(own_shapes / "gone"))
    assert f"TrainDataset: dataset_dir '{own_shapes}/gone' does not exist" in line
    line = refused("train", "-c", tiny, *own(own_shapes), "TrainDataset.image_dir=image")
    assert f"image_dir '{own_shapes}/image' does not exist; did you mean 'images'?" in line
    line = refused("eval", "-c", tiny, *own(own_shapes), "EvalDataset.anno_path=x.json")
    assert f"EvalDataset: anno_path '{own_shapes}/x.json' does not exist" in line


def test_images_that_are_missing_or_none(refused: Refused, tiny: Path, own_shapes: Path) -> None:
    image = sorted((own_shapes / "images").iterdir())[0]
    image.write_text("not an image")
    line = refused("train", "-c", tiny, *own(own_shapes))
    assert f"1 unreadable image: '{image}' is not an image" in line
    image.unlink()
    assert f"1 missing image: '{image}'" in refused("train", "-c", tiny, *own(own_shapes))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"annotations": []}, "is not a COCO annotation file"),
        ({"images": [{"id": 1}]}, "1 missing 'file_name': images[0] file_name"),
        ({"categories": [{"id": 1, "name": "circle"}]}, "has 1 classes (circle), num_classes is 4"),
        ("{", "is not a COCO annotation file"),
    ],
)
def test_coco_annotations(
    refused: Refused, tiny: Path, own_shapes: Path, changed: dict | str, said: str
) -> None:
    path = own_shapes / "annotations" / "instances_train.json"
    content = changed if isinstance(changed, str) else {**json.loads(path.read_text()), **changed}
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    line = refused("train", "-c", tiny, *own(own_shapes))
    assert f"TrainDataset: '{path}'" in line and said in line


@pytest.mark.parametrize("classes", [3, 5])
def test_number_of_classes(refused: Refused, tiny: Path, classes: int) -> None:
    line = refused("train", "-c", tiny, "-o", f"num_classes={classes}")
    assert "has 4 classes (circle, square, triangle, cross)" in line
    assert f"num_classes is {classes}" in line


def test_less_than_one_batch(refused: Refused, tiny: Path) -> None:
    """Nothing would be trained, and an untrained model saved."""
    line = refused("train", "-c", tiny, "-o", "TrainReader.batch_size=17")
    assert "TrainDataset has 16 images, less than one batch" in line
    assert "TrainReader.batch_size is 17" in line


def test_metric_of_another_kind(refused: Refused, tiny: Path, unpruned: Path) -> None:
    line = refused("eval", "-c", tiny, "-o", f"weights={unpruned}", "metric=VOC")
    assert "EvalDataset: metric VOC does not fit a COCODataSet; use COCO" in line


@pytest.mark.parametrize("command", ["infer", "export"])
def test_names_of_the_classes(
    refused: Refused, tiny: Path, tiny_voc: Path, unpruned: Path, shapes: Path, command: str
) -> None:
    """ppdet would name them after COCO or VOC."""
    image = next((shapes / "images").iterdir())
    weights = ("-o", f"weights={unpruned}")
    for config, count in ((tiny, 80), (tiny_voc, 20)):
        run = (command, "-c", config, "--infer_img", image, *weights)
        line = refused(*run, "TestDataset.anno_path=gone.json")
        assert f"'{shapes}/gone.json' does not exist, and gives {count} class names" in line
        assert "num_classes is 4" in line


def test_pictures_to_look_at(refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    (tmp_path / "empty").mkdir()
    animation = tmp_path / "a.gif"
    Image.new("RGB", (8, 8)).save(animation)
    for arguments, said in (
        (["--infer_img", text], f"1 unreadable image: '{text}' is not an image"),
        (["--infer_img", animation], f"--infer_img '{animation}': expected .jpg, .jpeg, .png"),
        (["--infer_img", tmp_path / "gone.jpg"], f"1 missing image: '{tmp_path}/gone.jpg'"),
        (["--infer_dir", tmp_path / "empty"], "has no image (.jpg"),
        (["--infer_dir", text], f"--infer_dir '{text}' is not a folder"),
        ([], "no image is given; add --infer_img FILE or --infer_dir FOLDER"),
        (["--infer_img", text, "--draw_threshold", 1.5], "--draw_threshold 1.5"),
    ):
        assert said in refused("infer", "-c", tiny, "-o", f"weights={unpruned}", *arguments)
