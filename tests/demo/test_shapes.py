"""The drawn shapes data set: its files, its readers and what becomes of its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest

from slim_det.demo import CLASS_NAMES, ShapesDataSet, draw_shapes
from slim_det.demo import shapes as shapes_module
from slim_det.demo.scene import Scene, draw_scene

SIZE_HW = (96, 128)
COUNTS = {"num_train": 5, "num_val": 3}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> ShapesDataSet:
    """A small data set that no test changes."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    return draw_shapes(root, **COUNTS, image_size_hw=SIZE_HW, seed=3)


def files_of(root: Path) -> dict[str, bytes]:
    """All files below a folder by their relative name."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def coco_boxes(path: Path) -> dict[int, list[tuple[str, list[int]]]]:
    """Class and x1 y1 x2 y2 of every COCO annotation by image id."""
    content = json.loads(path.read_text())
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    found: dict[int, list[tuple[str, list[int]]]] = {i["id"]: [] for i in content["images"]}
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        found[entry["image_id"]].append((names[entry["category_id"]], [x, y, x + w, y + h]))
    return found


def test_same_arguments_write_the_same_files(drawn: ShapesDataSet, tmp_path: Path) -> None:
    """Every file is equal byte by byte; another seed changes images and annotations."""
    again = draw_shapes(tmp_path / "again", **COUNTS, image_size_hw=SIZE_HW, seed=3)
    other = draw_shapes(tmp_path / "other", **COUNTS, image_size_hw=SIZE_HW, seed=4)
    before, after, changed = (files_of(each.root) for each in (drawn, again, other))
    assert before == after
    for name in before:
        same = name in ("train.txt", "val.txt", "label_list.txt")
        assert (before[name] == changed[name]) == same, name


def test_image_does_not_depend_on_the_counts(drawn: ShapesDataSet, tmp_path: Path) -> None:
    """Other counts move the split, not the images."""
    other = draw_shapes(tmp_path / "other", 2, 4, SIZE_HW, seed=3)
    for index in range(6):
        for name in (f"images/{index:06d}.jpg", f"Annotations/{index:06d}.xml"):
            assert (drawn.root / name).read_bytes() == (other.root / name).read_bytes()
    assert len(other.val_voc.read_text().splitlines()) == 4


def test_layout_of_the_folder(drawn: ShapesDataSet) -> None:
    """All named files are there and nothing else."""
    names = {"shapes.json", "train.txt", "val.txt", "label_list.txt"}
    names |= {"annotations/instances_train.json", "annotations/instances_val.json"}
    for index in range(8):
        names |= {f"images/{index:06d}.jpg", f"Annotations/{index:06d}.xml"}
    assert set(files_of(drawn.root)) == names
    assert drawn.label_list.read_text().splitlines() == list(CLASS_NAMES)
    assert CLASS_NAMES == ("circle", "square", "triangle", "cross")
    train = [f"images/{index:06d}.jpg Annotations/{index:06d}.xml" for index in range(5)]
    assert drawn.train_voc.read_text().splitlines() == train
    assert json.loads((drawn.root / "shapes.json").read_text())["seed"] == 3


def test_written_images_are_the_drawn_ones(drawn: ShapesDataSet) -> None:
    """JPEG loses little, so the file shows the scene that the boxes belong to."""
    for index in range(8):
        scene = draw_scene(3, index, SIZE_HW)
        read = cv2.imread(str(drawn.image_dir / f"{index:06d}.jpg"), cv2.IMREAD_COLOR)
        assert read.shape == (*SIZE_HW, 3)
        assert np.abs(read.astype(int) - scene.image.astype(int)).mean() < 6.0


def test_both_formats_name_the_drawn_boxes(drawn: ShapesDataSet) -> None:
    """COCO, VOC and the drawn truth agree box by box, in order."""
    found = {**coco_boxes(drawn.train_coco), **coco_boxes(drawn.val_coco)}
    assert sorted(found) == list(range(1, 9))
    for index in range(8):
        scene = draw_scene(3, index, SIZE_HW)
        truth = [
            (CLASS_NAMES[label], box)
            for box, label in zip(scene.boxes.tolist(), scene.labels.tolist())
        ]
        tree = ET.parse(drawn.root / "Annotations" / f"{index:06d}.xml")
        voc = [
            (
                entry.findtext("name"),
                [int(entry.findtext(f"bndbox/{t}", "")) for t in ("xmin", "ymin", "xmax", "ymax")],
            )
            for entry in tree.findall("object")
        ]
        assert truth == voc == found[index + 1]
        assert {entry.findtext("difficult") for entry in tree.findall("object")} == {"0"}
        size = [int(tree.findtext(f"size/{tag}", "")) for tag in ("height", "width", "depth")]
        assert size == [*SIZE_HW, 3]


def test_pycocotools_reads_it(drawn: ShapesDataSet) -> None:
    """Numbers start at 1 and a perfect detector scores 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(drawn.val_coco))
    assert truth.getCatIds() == [1, 2, 3, 4]
    assert sorted(truth.getAnnIds())[0] == 1
    entries = truth.loadAnns(truth.getAnnIds())
    assert all(e["area"] == e["bbox"][2] * e["bbox"][3] and e["iscrowd"] == 0 for e in entries)
    keys = ("image_id", "category_id", "bbox")
    guesses = [{**{key: entry[key] for key in keys}, "score": 1.0} for entry in entries]
    evaluation = COCOeval(truth, truth.loadRes(guesses), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_paddledetection_readers_agree(drawn: ShapesDataSet, split: str) -> None:
    """Both readers of PaddleDetection give equal images, boxes and classes."""
    source = pytest.importorskip("ppdet.data.source")
    fields = ["image", "gt_bbox", "gt_class", "difficult", "is_crowd"]
    coco_path, voc_path = {
        "train": (drawn.train_coco, drawn.train_voc),
        "val": (drawn.val_coco, drawn.val_voc),
    }[split]
    root = str(drawn.root)
    coco = source.COCODataSet(root, "images", str(coco_path.relative_to(root)), fields)
    voc = source.VOCDataSet(root, "", voc_path.name, fields, label_list="label_list.txt")
    for reader in (coco, voc):
        reader.parse_dataset()
    assert len(coco.roidbs) == len(voc.roidbs) == COUNTS[f"num_{split}"]
    assert coco.cname2cid == voc.cname2cid
    for one, other in zip(coco.roidbs, voc.roidbs):
        assert os.path.samefile(one["im_file"], other["im_file"])
        assert (one["h"], one["w"]) == (other["h"], other["w"])
        for key in ("im_id", "gt_bbox", "gt_class"):
            assert np.array_equal(one[key], other[key]), key
    written = sum(len(boxes) for boxes in coco_boxes(coco_path).values())
    assert sum(len(record["gt_bbox"]) for record in voc.roidbs) == written


def test_second_call_keeps_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn or touched again."""
    first = draw_shapes(tmp_path / "set", 2, 1, (64, 64))
    before = {path: path.stat().st_mtime_ns for path in [first.root, *first.root.rglob("*")]}
    monkeypatch.setattr(shapes_module, "draw_scene", None)
    assert draw_shapes(str(tmp_path / "set"), 2, 1, (64, 64)) == first
    assert draw_shapes(tmp_path / "set", 2, 1, [64, 64]) == first  # type: ignore[arg-type]
    after = {path: path.stat().st_mtime_ns for path in [first.root, *first.root.rglob("*")]}
    assert before == after


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_ending_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """Neither the folder nor a draft of it stays, and the next call succeeds."""
    seen = []

    def stopping(seed: int, index: int, image_size_hw: tuple[int, int]) -> Scene:
        seen.append((tmp_path / "set").exists())
        if index == 2:
            raise stop("stopped")
        return draw_scene(seed, index, image_size_hw)

    with monkeypatch.context() as patch:
        patch.setattr(shapes_module, "draw_scene", stopping)
        with pytest.raises(stop):
            draw_shapes(tmp_path / "set", 3, 1, (64, 64))
    assert seen == [False, False, False]
    assert list(tmp_path.iterdir()) == []
    assert draw_shapes(tmp_path / "set", 3, 1, (64, 64)).train_coco.is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("same", [True, False])
def test_folder_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Another process was faster: its equal data set is kept, anything else is refused."""
    target = tmp_path / "set"

    def drawing(root: Path, record: dict[str, object]) -> None:
        monkeypatch.undo()
        draw_shapes(target, 1, 1, (64, 64), seed=0 if same else 1)
        shapes_module._write_all(root, record)

    monkeypatch.setattr(shapes_module, "_write_all", drawing)
    if same:
        assert draw_shapes(target, 1, 1, (64, 64)).root == target
    else:
        with pytest.raises(FileExistsError, match="seed=1 instead of 0"):
            draw_shapes(target, 1, 1, (64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_empty_folder_and_missing_parents_are_filled(tmp_path: Path) -> None:
    """An empty folder is no foreign content; parents are made."""
    (tmp_path / "empty").mkdir()
    assert draw_shapes(tmp_path / "empty", 1, 1, (64, 64)).val_voc.is_file()
    assert draw_shapes(tmp_path / "a" / "b", 1, 1, (64, 64)).val_voc.is_file()


def spoil_nothing(root: Path) -> None:
    """Leave the data set as it is."""


def spoil_record(root: Path) -> None:
    """Make the record unreadable."""
    (root / "shapes.json").write_text("[")


def spoil_image(root: Path) -> None:
    """Take one image away."""
    (root / "images" / "000001.jpg").unlink()


def spoil_all(root: Path) -> None:
    """Put a file in the place of the folder."""
    shutil.rmtree(root)
    root.write_text("mine")


@pytest.mark.parametrize(
    ("spoil", "seed", "text"),
    [
        (spoil_nothing, 9, "seed=0 instead of 9"),
        (spoil_record, 0, "not a shapes data set"),
        (spoil_image, 0, "without 000001.jpg"),
        (spoil_all, 0, "is a file"),
    ],
)
def test_foreign_content_is_refused(tmp_path: Path, spoil, seed: int, text: str) -> None:  # type: ignore[no-untyped-def]
    """The message names the place, the trouble and the way out; nothing is changed."""
    target = tmp_path / "set"
    draw_shapes(target, 2, 1, (64, 64))
    spoil(target)
    before = files_of(tmp_path)
    with pytest.raises(FileExistsError, match=text) as caught:
        draw_shapes(target, 2, 1, (64, 64), seed=seed)
    message = str(caught.value)
    assert str(target) in message and "another folder" in message and "\n" not in message
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_train": 0}, "num_train"),
        ({"num_val": -1}, "num_val"),
        ({"num_val": 1.5}, "num_val"),
        ({"num_train": True}, "num_train"),
        ({"image_size_hw": (63, 160)}, "image_size_hw"),
        ({"image_size_hw": (160, 63)}, "image_size_hw"),
        ({"image_size_hw": (160,)}, "image_size_hw"),
        ({"image_size_hw": 160}, "image_size_hw"),
        ({"image_size_hw": (160.0, 160.0)}, "image_size_hw"),
        ({"seed": -1}, "seed"),
        ({"seed": None}, "seed"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], name: str) -> None:
    """One clear line that names the argument, before anything is written."""
    with pytest.raises(ValueError, match=name) as caught:
        draw_shapes(tmp_path / "set", **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_import_needs_no_framework() -> None:
    """Neither Paddle nor PaddleDetection is loaded with the module."""
    code = (
        "import sys, slim_det.demo.shapes\n"
        "sys.exit(any(name.split('.')[0] in ('paddle', 'ppdet') for name in sys.modules))"
    )
    folder = Path(shapes_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
