"""COCO and VOC annotations of drawn images.

Both contain the same boxes, in pixels from 0, with the right and lower edges one past the last
pixel of the object. PaddleDetection clips VOC boxes to W - 1 and H - 1. Objects stay one pixel
away from the border, so nothing is clipped and both readers give the same boxes.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

from slim_det.demo.scene import CLASS_NAMES, Scene


def coco_entries(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Make the COCO annotations of one image, numbered from `first_id`.

    `bbox` is x y w h in pixels; `area` is that of the box.
    """
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for number, ((x1, y1, x2, y2), label) in enumerate(
            zip(scene.boxes.tolist(), scene.labels.tolist()), start=first_id
        )
    ]


def coco_document(images: list[dict[str, Any]], entries: list[dict[str, Any]]) -> str:
    """Make a COCO file from its images and annotations; categories are numbered from 1."""
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in enumerate(CLASS_NAMES, start=1)
    ]
    content = {"images": images, "annotations": entries, "categories": categories}
    return json.dumps(content) + "\n"


def voc_document(scene: Scene, file_name: str, image_id: int) -> str:
    """Make the VOC file of one image.

    PaddleDetection reads the tag `id`, which gives an image the same number as in the COCO file.
    """
    height, width, depth = scene.image.shape
    root = ET.Element("annotation")
    _add(root, {"folder": "images", "filename": file_name, "id": image_id})
    _add(ET.SubElement(root, "size"), {"width": width, "height": height, "depth": depth})
    _add(root, {"segmented": 0})
    for box, label in zip(scene.boxes.tolist(), scene.labels.tolist()):
        entry = ET.SubElement(root, "object")
        _add(entry, {"name": CLASS_NAMES[label], "pose": "Unspecified"})
        _add(entry, {"truncated": 0, "difficult": 0})
        _add(ET.SubElement(entry, "bndbox"), dict(zip(("xmin", "ymin", "xmax", "ymax"), box)))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _add(parent: ET.Element, values: dict[str, Any]) -> None:
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)
