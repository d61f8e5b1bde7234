"""The images that a method learns from: which they are, and how a detector runs on them."""

from __future__ import annotations

import json
import logging
import random
import shutil
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from slim_det.compress.images import (
    calibration_images,
    labelled_batches,
    unlabelled_images,
)
from slim_det.core.errors import ConfigError, DataError
from slim_det.graph.dygraph import seeded


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
    with pytest.raises(
        DataError, match=r"has 16 images, 99 are asked for \(images\); expected at most 16"
    ):
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
    with pytest.raises(DataError, match="1 unreadable image: '.*c.png' is not an image"):
        unlabelled_images(2, str(tmp_path))


def batches(cfg: Any, most: int, seed: int = 0) -> tuple[int, list[dict[str, Any]]]:
    with seeded(seed):
        count, found = labelled_batches(cfg, most)
        return count, list(found)


def test_images_with_labels(tiny_cfg: Any) -> None:
    """As `TrainReader` makes them, in order; the last batch is smaller, and none is left out."""
    tiny_cfg["worker_num"] = 2
    count, found = batches(tiny_cfg, 11)
    assert count == 11 and [len(batch["image"]) for batch in found] == [8, 3]
    assert found[0]["image"].shape == [8, 3, 96, 96]
    assert {"gt_bbox", "target0", "target2"} <= set(found[0])
    ids = [int(number) for batch in found for number in batch["im_id"]]
    assert ids == sorted(ids) and len(set(ids)) == 11
    assert batches(tiny_cfg, 99)[0] == 16


def test_augmentation_follows_the_seed(tiny_cfg: Any) -> None:
    """Images are mirrored or not; labels go with them."""
    images, boxes = (
        [batches(tiny_cfg, 8, seed)[1][0][key].numpy() for seed in (0, 0, 1)]
        for key in ("image", "gt_bbox")
    )
    for one in (images, boxes):
        assert (one[0] == one[1]).all() and (one[0] != one[2]).any()


def test_no_random_number_is_drawn_ahead(tiny_cfg: Any) -> None:
    """What is drawn between two batches changes the second one only."""
    with seeded(0):
        count, found = labelled_batches(tiny_cfg, 16)
        first = next(found)
        state = np.random.get_state()[2], random.getstate()
        time.sleep(0.2)
        assert (np.random.get_state()[2], random.getstate()) == state
        assert count == 16 and len(first["image"]) == 8
        assert len(list(found)) == 1


def test_labels_that_are_not_there(tiny_cfg: Any, tmp_path: Path) -> None:
    """Images of another data set are no replacement."""
    settings = tiny_cfg["TrainDataset"]
    before = dict(settings)
    settings["anno_path"] = None
    with pytest.raises(DataError, match="TrainDataset: no anno_path is given; expected an annot"):
        labelled_batches(tiny_cfg, 1)
    settings.update(before, dataset_dir="gone")
    with pytest.raises(DataError, match="TrainDataset: dataset_dir 'gone' does not exist"):
        labelled_batches(tiny_cfg, 1)


def test_a_labelled_image_that_ends_too_early(tiny_cfg: Any, shapes: Path, tmp_path: Path) -> None:
    """Its header is that of a PNG image; half of the rest is missing."""
    root = tmp_path / "set"
    shutil.copytree(shapes, root)
    broken = root / "images" / Path(training_images(shapes)[9]).name
    content = cv2.imencode(".png", cv2.imread(str(broken)))[1].tobytes()
    broken.write_bytes(content[: len(content) // 2])
    tiny_cfg["TrainDataset"]["dataset_dir"] = str(root)
    with pytest.raises(DataError, match=f"1 unreadable image: '{broken}' is damaged"):
        batches(tiny_cfg, 9)
