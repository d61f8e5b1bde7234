"""COCO and VOC annotations of drawn images.

Both name the same boxes: integer pixels counted from 0, with the right and the lower edge one
past the last drawn pixel. PaddleDetection takes the numbers of a VOC file as they are and clips
them to W - 1 and H - 1; every drawn object keeps one pixel off the border, so that nothing is
ever clipped and both readers give equal boxes.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

from slim_det.demo.scene import CLASS_NAMES, Scene


def coco_entries(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Make the COCO annotations of one image.

    Args:
        scene: The drawn image.
        image_id: Its number in the COCO file.
        first_id: Number of the first annotation; the others follow.

    Returns:
        One entry per object: `bbox` is x y w h in pixels, `area` is that of the box, as
        pycocotools counts it for a detected box.
    """
    entries: list[dict[str, Any]] = []
    for box, label in zip(scene.boxes.tolist(), scene.labels.tolist()):
        x1, y1, x2, y2 = box
        entries.append(
            {
                "id": first_id + len(entries),
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
        )
    return entries


def coco_document(images: list[dict[str, Any]], entries: list[dict[str, Any]]) -> str:
    """Make the text of a COCO file.

    Args:
        images: The COCO image entries.
        entries: The COCO annotations of all these images.

    Returns:
        JSON text with the categories numbered from 1 in the order of the class names.
    """
    categories = [
        {"id": number, "name": name, "supercategory": "shape"}
        for number, name in enumerate(CLASS_NAMES, start=1)
    ]
    content = {"images": images, "annotations": entries, "categories": categories}
    return json.dumps(content) + "\n"


def voc_document(scene: Scene, file_name: str, image_id: int) -> str:
    """Make the text of the VOC file of one image.

    Args:
        scene: The drawn image.
        file_name: Name of the image file, without its folder.
        image_id: The number that the image has in the COCO file; PaddleDetection reads it from
            the tag `id`, so that both readers number the images alike.

    Returns:
        XML text; `bndbox` holds pixels.
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
