"""Checks a data set before it is used: folders, annotations, classes, images."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from slim_det.core.errors import DataError, nearest
from slim_det.core.files import IMAGE_SUFFIXES
from slim_det.evaluate.data.check_faces import check_faces

METRICS = {"COCODataSet": "COCO", "VOCDataSet": "VOC", "WIDERFaceDataSet": "WiderFace"}


def check_dataset(cfg: Any, name: str) -> int:
    """Check a data set of the configuration (COCO, VOC or WIDER FACE).

    Args:
        cfg: ppdet's configuration.
        name: ``TrainDataset`` or ``EvalDataset``.

    Returns:
        The number of images.

    Raises:
        DataError: A folder, file or image is missing or unreadable, there are no annotations,
            the classes do not match ``num_classes``, ``metric`` does not fit the data set, or
            the WIDER FACE ground truth does not belong to these images.
    """
    settings = cfg[name]
    fields = settings if isinstance(settings, dict) else vars(settings)
    kind = fields.get("name") or type(settings).__name__
    if name == "EvalDataset" and cfg.metric != METRICS.get(kind, cfg.metric):
        raise DataError(f"{name}: metric {cfg.metric} does not fit a {kind}; use {METRICS[kind]}")
    root = Path(fields.get("dataset_dir") or "")
    if not root.is_dir():
        raise DataError(f"{name}: dataset_dir '{root}' does not exist")
    images = root / (fields.get("image_dir") or "")
    if not images.is_dir():
        found = [p.name for p in root.iterdir() if p.is_dir()]
        raise DataError(f"{name}: image_dir '{images}' does not exist{nearest(images.name, found)}")
    if not fields.get("anno_path"):
        raise DataError(f"{name}: no anno_path is given; expected an annotation file")
    annotations = root / fields["anno_path"]
    if not annotations.is_file():
        raise DataError(f"{name}: anno_path '{annotations}' does not exist")
    if kind == "COCODataSet":
        paths = _check_coco(name, annotations, images, cfg.num_classes)
    elif kind == "VOCDataSet":
        labels = root / (fields.get("label_list") or "label_list.txt")
        paths = _check_voc(name, annotations, images, labels, cfg.num_classes)
    elif kind == "WIDERFaceDataSet":
        _check_classes(name, annotations, ["face"], cfg.num_classes)
        truth = cfg.get("widerface_ground_truth") if name == "EvalDataset" else None
        paths = check_faces(name, annotations, images, fields.get("sample_num", -1), truth)
    else:
        return 0
    for path in paths:
        check_image(path)
    return len(paths)


def check_image(path: str | Path) -> None:
    """Check that a file is an image, by its header; DataError if it is missing or not an image."""
    try:
        with Image.open(path):
            pass
    except FileNotFoundError:
        raise DataError(f"image '{path}' does not exist") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"'{path}' is not a readable image") from error


def find_images(image: str | None, folder: str | None, where: str = "--infer_dir") -> list[str]:
    """Paths of the images given by ``--infer_img`` or ``--infer_dir``, in order.

    Args:
        image: One image, which precedes the folder.
        folder: A folder of images.
        where: What names the folder, for messages.

    Raises:
        DataError: Neither is given, or a file is missing or not an image.
    """
    if image:
        paths = [Path(image)]
        if paths[0].is_file() and paths[0].suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"--infer_img '{image}': expected {', '.join(IMAGE_SUFFIXES)}")
    elif folder:
        if not Path(folder).is_dir():
            raise DataError(f"{where} '{folder}' is not a folder")
        paths = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise DataError(f"{where} '{folder}' has no image ({', '.join(IMAGE_SUFFIXES)})")
    else:
        raise DataError("no image is given; add --infer_img FILE or --infer_dir FOLDER")
    for path in paths:
        check_image(path)
    return [str(path) for path in paths]


def _check_coco(name: str, path: Path, images: Path, num_classes: int) -> list[Path]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        files = [images / entry["file_name"] for entry in content["images"]]
        classes = [category["name"] for category in content["categories"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: '{path}' is not a COCO annotation file: {error!r}") from error
    if not content.get("annotations"):
        raise DataError(f"{name}: '{path}' has no annotations")
    _check_classes(name, path, classes, num_classes)
    return files


def _check_voc(name: str, path: Path, images: Path, labels: Path, num_classes: int) -> list[Path]:
    if not labels.is_file():
        raise DataError(f"{name}: label_list '{labels}' does not exist")
    classes = labels.read_text(encoding="utf-8").split("\n")
    classes = [line.strip() for line in classes if line.strip()]
    _check_classes(name, labels, classes, num_classes)
    files = []
    objects = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if len(parts) < 2:
            raise DataError(f"{name}: '{path}' line {number}: expected 'IMAGE XML', found '{line}'")
        files.append(images / parts[0])
        for label in _voc_labels(name, images / parts[1]):
            objects += 1
            if label not in classes:
                raise DataError(
                    f"{name}: '{images / parts[1]}': unknown class '{label}'"
                    f"{nearest(label, classes)}"
                )
    if not objects:
        raise DataError(f"{name}: '{path}' lists no annotated objects")
    return files


def _voc_labels(name: str, path: Path) -> Iterator[str]:
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        raise DataError(f"{name}: annotation '{path}' does not exist") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{name}: annotation '{path}' is not XML: {error}") from error
    for node in tree.iter("object"):
        yield (node.findtext("name") or "").strip()


def _check_classes(name: str, path: Path, classes: list[str], num_classes: int) -> None:
    if len(classes) != num_classes:
        raise DataError(
            f"{name}: '{path}' has {len(classes)} classes ({', '.join(classes[:5])}"
            f"{', ...' if len(classes) > 5 else ''}), num_classes is {num_classes}"
        )
