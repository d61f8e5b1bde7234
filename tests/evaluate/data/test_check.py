"""A data set is checked before anything is trained on it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.data import check
from slim_det.evaluate.data.check import check_dataset, check_training
from tests.support import Config


def coco(root: Path, **changes: Any) -> Config:
    settings = {
        "name": "COCODataSet",
        "dataset_dir": str(root),
        "image_dir": "images",
        "anno_path": "annotations/instances_train.json",
    }
    return Config(TrainDataset={**settings, **changes}, num_classes=4)


def voc(root: Path, **changes: Any) -> Config:
    fields = ["image", "gt_bbox", "gt_class", "difficult"]
    settings: dict[str, Any] = {"name": "VOCDataSet", "dataset_dir": str(root)}
    settings.update(anno_path="train.txt", data_fields=fields)
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


def test_a_data_set_that_passed_is_not_read_again(
    own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Remarks are repeated; any changed file has all of it read again."""
    xml = own / (own / "train.txt").read_text().split()[1]
    xml.write_text("<annotation/>")
    logging.getLogger("slim_det").propagate = True
    with monkeypatch.context() as patch:
        for _ in range(2):
            caplog.clear()
            assert check_dataset(voc(own), "TrainDataset") == 16
            assert f"1 image without objects: '{xml}'; left out of the training" in caplog.text
            patch.setattr(check, "_inspect", lambda source: pytest.fail("read again"))
    xml.write_text("<annotation>")
    assert "1 annotation that is not XML" in refusal(voc(own))


def test_nothing_is_remembered_of_a_data_set_with_faults(own: Path) -> None:
    image = own / (own / "train.txt").read_text().split()[0]
    content = image.read_bytes()
    image.write_bytes(content[:200])
    for _ in range(2):
        assert "1 unreadable image" in refusal(voc(own))
    image.write_bytes(content)
    assert check_dataset(voc(own), "TrainDataset") == 16


def test_images_without_objects(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What becomes of them depends on what the data set is for."""
    xml = own / (own / "train.txt").read_text().split()[1]
    xml.write_text("<annotation/>")
    logging.getLogger("slim_det").propagate = True
    check_dataset(voc(own, allow_empty=True), "TrainDataset")
    assert "trained as background" in caplog.text
    cfg = voc(own)
    cfg.update(EvalDataset=cfg["TrainDataset"], metric="VOC")
    check_dataset(cfg, "EvalDataset")
    assert "boxes found in them count as false" in caplog.text


def test_nothing_that_counts(own: Path) -> None:
    (own / "train.txt").write_text("")
    assert refusal(voc(own)) == f"TrainDataset: '{own}/train.txt' has no image"


def test_objects_that_are_all_difficult(own: Path) -> None:
    """A training learns them; an evaluation would have an AP of 0 without a reason."""
    for line in (own / "train.txt").read_text().splitlines():
        xml = own / line.split()[1]
        xml.write_text(xml.read_text().replace("<difficult>0<", "<difficult>1<"))
    cfg = voc(own)
    cfg.update(EvalDataset=cfg["TrainDataset"], metric="VOC")
    assert check_dataset(cfg, "TrainDataset") == 16
    assert refusal(cfg, "EvalDataset").endswith("has no object that counts")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset_dir": 5}, "TrainDataset.dataset_dir: 5 is not valid; expected a name, as text"),
        ({"anno_path": ["train.txt"]}, "TrainDataset.anno_path: ['train.txt'] is not valid"),
        ({"image_dir": 3}, "TrainDataset.image_dir: 3 is not valid"),
        ({"label_list": 3}, "TrainDataset.label_list: 3 is not valid"),
        ({"sample_num": 1.5}, "TrainDataset.sample_num: 1.5 is not valid; expected a whole number"),
        ({"sample_num": True}, "TrainDataset.sample_num: True is not valid"),
        ({"sample_num": -2}, "TrainDataset.sample_num: -2 is not valid"),
        ({"allow_empty": "no"}, "TrainDataset.allow_empty: 'no' is not valid; expected true or"),
        ({"data_fields": None}, "TrainDataset.data_fields: None is not valid; expected a list"),
    ],
)
def test_settings_of_another_type(shapes: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_dataset(voc(shapes, **changes), "TrainDataset")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("settings", ["abc", [1], 3])
def test_settings_that_are_none(settings: Any) -> None:
    said = refusal(Config(TrainDataset=settings, num_classes=4))
    assert said == f"TrainDataset: {settings!r} is not valid; expected the settings of a data set"


def test_a_data_set_of_absolute_paths(shapes: Path) -> None:
    """ppdet's own default of `dataset_dir` is empty text."""
    annotations = str(shapes / "annotations" / "instances_train.json")
    cfg = coco(shapes, dataset_dir="", image_dir=str(shapes / "images"), anno_path=annotations)
    assert check_dataset(cfg, "TrainDataset") == 16


def test_files_where_folders_are_expected(own: Path) -> None:
    (own / "file").write_text("")
    assert refusal(voc(own / "file")) == f"TrainDataset: dataset_dir '{own}/file' is not a folder"
    assert "image_dir" in refusal(voc(own, image_dir="file"))
    assert refusal(voc(own, anno_path="images")).endswith("/images' is not a file")
    assert refusal(voc(own, label_list="images")).endswith("/images' is not a file")


def test_labels_of_voc(own: Path) -> None:
    """Without a list of labels ppdet takes those of VOC, and so does the check."""
    cfg = voc(own, label_list=None)
    assert "'VOC' has 20 classes (aeroplane, bicycle," in refusal(cfg)


def test_images_that_occur_again(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They would count twice in an evaluation; a training may repeat rare ones."""
    line = (own / "train.txt").read_text().splitlines()[0]
    with (own / "train.txt").open("a") as stream:
        stream.write(f"\n./{line}\n")
    cfg = voc(own)
    cfg.update(EvalDataset=cfg["TrainDataset"], metric="VOC")
    image = own / line.split()[0]
    said = refusal(cfg, "EvalDataset")
    assert said == (
        f"EvalDataset: 1 image that occurs again: '{image}' (2 times); expected each once"
    )
    logging.getLogger("slim_det").propagate = True
    assert check_dataset(cfg, "TrainDataset") == 17
    assert "(2 times); a training sees them more often" in caplog.text


def test_fields_that_the_metric_needs(shapes: Path) -> None:
    cfg = voc(shapes, data_fields=["image", "gt_bbox"])
    cfg.update(EvalDataset=cfg["TrainDataset"], metric="VOC")
    said = refusal(cfg, "EvalDataset")
    assert (
        said == "EvalDataset: data_fields lacks gt_class, difficult, which the metric compares with"
    )


def test_part_of_an_evaluation(shapes: Path) -> None:
    """pycocotools would count the objects of the images that are not read as missed."""
    cfg = coco(shapes, sample_num=3)
    cfg.update(EvalDataset=cfg["TrainDataset"], metric="COCO")
    assert refusal(cfg, "EvalDataset").startswith(
        "EvalDataset: sample_num 3 is not valid; expected"
    )


def test_order_of_classes(own: Path) -> None:
    other = Path(shutil.copytree(own, own.parent / "other"))
    cfg = voc(own)
    cfg.update(EvalDataset={**cfg["TrainDataset"], "dataset_dir": str(other)}, metric="VOC")
    check_training(cfg, evaluates=True)
    names = (other / "label_list.txt").read_text().split()
    (other / "label_list.txt").write_text("\n".join([names[0], names[2], names[1], names[3]]))
    check_training(cfg, evaluates=False)
    with pytest.raises(DataError) as caught:
        check_training(cfg, evaluates=True)
    assert str(caught.value) == (
        "class 2 of EvalDataset is 'triangle', that of TrainDataset is 'square'; expected the same "
        "classes in the same order"
    )
