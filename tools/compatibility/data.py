"""A few drawn images under the names that PaddleDetection's configurations expect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2

from slim_det.demo.annotations import coco_document, coco_entries, voc_document
from slim_det.demo.scene import CLASS_NAMES, draw_scene

IMAGES = {"train2017": range(4), "val2017": range(4, 6)}
SIZE_HW = (240, 320)
COCO_CLASSES, VOC_CLASSES = 80, 20


def draw_data_sets(work: Path) -> None:
    """Draw COCO and VOC below `dataset/`, unless they are there."""
    if (work / "dataset" / "voc" / "label_list.txt").exists():
        return
    coco, voc = work / "dataset" / "coco", work / "dataset" / "voc"
    (coco / "annotations").mkdir(parents=True, exist_ok=True)
    (voc / "images").mkdir(parents=True, exist_ok=True)
    lists = {}
    for part, numbers in IMAGES.items():
        (coco / part).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        entries: list[dict[str, Any]] = []
        lines = []
        for number in numbers:
            scene, name = draw_scene(0, number, SIZE_HW), f"{number:012}.jpg"
            for path in (coco / part / name, voc / "images" / name):
                cv2.imwrite(str(path), scene.image)
            entries += coco_entries(scene, number, len(entries) + 1)
            size = {"height": SIZE_HW[0], "width": SIZE_HW[1]}
            images.append({"id": number, "file_name": name, **size})
            xml = voc / "images" / f"{number:012}.xml"
            xml.write_text(voc_document(scene, name, number), encoding="utf-8")
            lines.append(f"images/{name} images/{xml.name}\n")
        content = json.loads(coco_document(images, entries))
        content["categories"] += _more(COCO_CLASSES)
        text = json.dumps(_with_polygons(content))
        (coco / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")
        lists[part] = "".join(lines)
    (voc / "trainval.txt").write_text(lists["train2017"], encoding="utf-8")
    (voc / "test.txt").write_text(lists["val2017"], encoding="utf-8")
    names = [*CLASS_NAMES, *(entry["name"] for entry in _more(VOC_CLASSES))]
    (voc / "label_list.txt").write_text("\n".join(map(str, names)) + "\n", encoding="utf-8")


def _more(count: int) -> list[dict[str, Any]]:
    """Categories without objects, up to a number of classes."""
    numbers = range(len(CLASS_NAMES) + 1, count + 1)
    return [{"id": number, "name": f"class {number}"} for number in numbers]


def _with_polygons(content: dict[str, Any]) -> dict[str, Any]:
    """Add a mask to every object: its box."""
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return content
