"""The images that a method learns from: which they are, and how a detector runs on them."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import paddle
import pytest

from slim_det.compress.images import calibration_images, deployed_mode, unlabelled_images
from slim_det.core.errors import ConfigError, DataError


def training_images(shapes: Path) -> list[str]:
    """In the order of the annotation file, in which all of them have objects."""
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    entries = sorted(content["images"], key=lambda entry: entry["id"])
    return [str(shapes / "images" / entry["file_name"]) for entry in entries]


def test_the_first_images_of_the_training_set(tiny_cfg: Any, shapes: Path) -> None:
    expected = training_images(shapes)
    assert len(expected) == 16
    assert unlabelled_images(3) == ("TrainDataset", expected[:3])
    assert unlabelled_images(16) == calibration_images(16) == ("TrainDataset", expected)


def test_more_images_than_there_are(tiny_cfg: Any, shapes: Path) -> None:
    """Who needs a number gets an error, who takes what there is gets all."""
    assert unlabelled_images(99)[1] == training_images(shapes)
    with pytest.raises(DataError, match="has 16 images, 99 are asked for; expected at most 16"):
        calibration_images(99)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_number_that_cannot_be(tiny_cfg: Any, count: Any) -> None:
    with pytest.raises(ConfigError, match=f"images: {count} is not valid"):
        calibration_images(count)


def test_without_a_training_set(
    tiny_cfg: Any, shapes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those of EvalDataset, with a line that says so."""
    tiny_cfg["TrainDataset"]["dataset_dir"] = "gone"
    with caplog.at_level(logging.WARNING, "slim_det"):
        name, files = unlabelled_images(99)
    assert name == "EvalDataset" and len(files) == 6
    (line,) = [record.getMessage() for record in caplog.records if record.name == "slim_det"]
    assert line.startswith("calibration on EvalDataset: TrainDataset cannot be read (")


def test_without_any_data_set(tiny_cfg: Any) -> None:
    for part in ("Train", "Eval"):
        tiny_cfg[f"{part}Dataset"]["dataset_dir"] = "gone"
    with pytest.raises(DataError, match="EvalDataset cannot be read"):
        unlabelled_images(1)


def test_a_folder(tiny_cfg: Any, shapes: Path, tmp_path: Path) -> None:
    """Its images in the order of their names; other files are ignored."""
    with pytest.raises(DataError, match=r"Pruner\.calibration\.folder '.*' is not a folder"):
        unlabelled_images(2, str(tmp_path / "gone"))
    with pytest.raises(DataError, match="has no image"):
        unlabelled_images(2, str(tmp_path))
    source = training_images(shapes)[0]
    for name in ("b.png", "a.png", "c.png"):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    expected = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert unlabelled_images(9, str(tmp_path)) == (str(tmp_path), expected)
    assert unlabelled_images(2, str(tmp_path)) == (str(tmp_path), expected[:2])
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(DataError, match="'.*c.png' is not a readable image"):
        unlabelled_images(2, str(tmp_path))


class Detector(paddle.nn.Layer):
    """With ppdet's way of normalising inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse_norm, self.loaded = False, None

    def load_meanstd(self, transforms: Any) -> None:
        self.loaded = transforms


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_as_it_will_be_deployed(fused: bool) -> None:
    """Also restored after an error."""
    model = Detector()
    model.train()
    reader = {"fuse_normalize": fused, "sample_transforms": [{"Decode": {}}]}
    with pytest.raises(RuntimeError), deployed_mode(model, {"TestReader": reader}):
        assert not model.training
        assert model.fuse_norm is fused
        assert model.loaded == (reader["sample_transforms"] if fused else None)
        raise RuntimeError
    assert model.training and model.fuse_norm is False


def test_a_model_that_cannot_normalise() -> None:
    model = paddle.nn.Linear(1, 1)
    with deployed_mode(model, {"TestReader": {}}):
        assert not model.training
    assert not hasattr(model, "fuse_norm")
