"""A small detection data set, drawn from a seed and annotated for COCO and for VOC."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from slim_det.demo.annotations import coco_document, coco_entries, voc_document
from slim_det.demo.scene import CLASS_NAMES, Scene, draw_scene

FORMAT_VERSION = 1
JPEG_QUALITY = 95
MIN_IMAGE_SIDE = 64

_RECORD = "shapes.json"


@dataclass(frozen=True)
class ShapesDataSet:
    """Absolute paths of a drawn data set.

    Attributes:
        root: The data set folder.
        image_dir: Folder of the images; COCO file names are relative to it.
        train_coco: COCO annotations of the training images.
        val_coco: COCO annotations of the validation images.
        train_voc: VOC list of the training images; paths in it are relative to `root`.
        val_voc: VOC list of the validation images; paths in it are relative to `root`.
        label_list: The class names, one per line, for the VOC reader.
    """

    root: Path
    image_dir: Path
    train_coco: Path
    val_coco: Path
    train_voc: Path
    val_voc: Path
    label_list: Path


def draw_shapes(
    root: str | os.PathLike[str],
    num_train: int = 240,
    num_val: int = 60,
    image_size_hw: tuple[int, int] = (160, 160),
    seed: int = 0,
) -> ShapesDataSet:
    """Draw a detection data set, unless `root` already holds the same one.

    Validation images are numbered after the training images. Image i only depends on `seed`, i
    and `image_size_hw`. The folder is created when everything is drawn, so an interrupted run
    leaves nothing at `root`.

    Args:
        root: Folder to create.
        num_train: Number of training images, 1 or more.
        num_val: Number of validation images, 1 or more.
        image_size_hw: Height and width of the images in pixels, 64 or more each.
        seed: Seed of the images, 0 or more.

    Raises:
        ValueError: A count, the image size or the seed is out of range.
        FileExistsError: `root` holds something else.
        OSError: The folder cannot be written.
    """
    _check_arguments(num_train, num_val, image_size_hw, seed)
    height, width = image_size_hw
    record = {
        "format": FORMAT_VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size_hw": [height, width],
        "seed": seed,
    }
    target = Path(root).resolve()
    data_set = _paths(target)
    if _is_drawn(target, record):
        return data_set
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        draft = Path(folder) / target.name
        draft.mkdir()
        _write_all(draft, record)
        try:
            os.replace(draft, target)  # fails unless target is an empty folder or missing
        except OSError:
            if not _is_drawn(target, record):  # by another process meanwhile
                raise
    return data_set


def _check_arguments(
    num_train: int, num_val: int, image_size_hw: tuple[int, int], seed: int
) -> None:
    for name, count in (("num_train", num_train), ("num_val", num_val)):
        if not _is_int(count) or count < 1:
            raise ValueError(f"{name} must be an integer of 1 or more, got {count!r}")
    size = tuple(image_size_hw) if isinstance(image_size_hw, (tuple, list)) else ()
    if len(size) != 2 or not all(_is_int(side) and side >= MIN_IMAGE_SIDE for side in size):
        raise ValueError(
            "image_size_hw must be two integers (height, width) "
            f"of {MIN_IMAGE_SIDE} or more, got {image_size_hw!r}"
        )
    if not _is_int(seed) or seed < 0:
        raise ValueError(f"seed must be an integer of 0 or more, got {seed!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _paths(root: Path) -> ShapesDataSet:
    return ShapesDataSet(
        root=root,
        image_dir=root / "images",
        train_coco=root / "annotations" / "instances_train.json",
        val_coco=root / "annotations" / "instances_val.json",
        train_voc=root / "train.txt",
        val_voc=root / "val.txt",
        label_list=root / "label_list.txt",
    )


def _is_drawn(target: Path, record: dict[str, Any]) -> bool:
    """Whether `target` holds this data set; False if there is nothing, an error if other files."""
    advice = "give another folder or remove this one"
    if not target.exists():
        return False
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, not a folder for a shapes data set; {advice}")
    if not any(target.iterdir()):
        return False
    try:
        found = json.loads((target / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise FileExistsError(f"{target} holds files that are not a shapes data set; {advice}")
    if found != record:
        differing = ", ".join(
            f"{key}={found.get(key)!r} instead of {value!r}"
            for key, value in record.items()
            if found.get(key) != value
        )
        raise FileExistsError(
            f"{target} holds a shapes data set made with {differing or 'more settings'}; {advice}"
        )
    missing = next((path for path in _expected_files(target, record) if not path.is_file()), None)
    if missing is not None:
        raise FileExistsError(f"{target} holds a shapes data set without {missing.name}; {advice}")
    return True


def _expected_files(root: Path, record: dict[str, Any]) -> list[Path]:
    paths = _paths(root)
    lists = [paths.train_coco, paths.val_coco, paths.train_voc, paths.val_voc, paths.label_list]
    for index in range(record["num_train"] + record["num_val"]):
        image, annotation = _file_names(index)
        lists += [root / image, root / annotation]
    return lists


def _file_names(index: int) -> tuple[str, str]:
    return f"images/{index:06d}.jpg", f"Annotations/{index:06d}.xml"


def _write_all(root: Path, record: dict[str, Any]) -> None:
    paths = _paths(root)
    for folder in (paths.image_dir, paths.train_coco.parent, root / "Annotations"):
        # Two of them are the same folder on a file system that ignores case.
        folder.mkdir(exist_ok=True)
    num_train, total = record["num_train"], record["num_train"] + record["num_val"]
    _write_split(root, paths.train_coco, paths.train_voc, range(num_train), record)
    _write_split(root, paths.val_coco, paths.val_voc, range(num_train, total), record)
    _write_text(paths.label_list, "\n".join(CLASS_NAMES) + "\n")
    _write_text(root / _RECORD, json.dumps(record, indent=1) + "\n")


def _write_split(
    root: Path, coco_path: Path, voc_path: Path, indices: range, record: dict[str, Any]
) -> None:
    """Draw the images of one split and write them with both kinds of annotation."""
    height, width = record["image_size_hw"]
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    lines = []
    for index in indices:
        scene = draw_scene(record["seed"], index, (height, width))
        image_name, voc_name = _file_names(index)
        file_name = Path(image_name).name
        image_id = index + 1
        _write_jpeg(root / image_name, scene)
        _write_text(root / voc_name, voc_document(scene, file_name, image_id))
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        entries += coco_entries(scene, image_id, first_id=len(entries) + 1)
        lines.append(f"{image_name} {voc_name}\n")
    _write_text(voc_path, "".join(lines))
    _write_text(coco_path, coco_document(images, entries))


def _write_jpeg(path: Path, scene: Scene) -> None:
    done, data = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise OSError(f"{path} could not be encoded as JPEG")
    path.write_bytes(data.tobytes())


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
