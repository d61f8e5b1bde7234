"""Reads a data set with VOC's annotations: a list of images and XML files, and a list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from slim_det.core.errors import DataError, nearest
from slim_det.evaluate.data import boxes
from slim_det.evaluate.data.findings import Findings, Kind
from slim_det.evaluate.data.voc_xml import read_tags

NOT_TWO = Kind(
    "line that is not 'IMAGE XML'",
    "lines that are not 'IMAGE XML'",
    "expected two names, and names without spaces",
)
UNKNOWN_CLASS = Kind(
    "object of an unknown class", "objects of an unknown class", "expected one of label_list"
)
NOT_DIFFICULT = Kind(
    "empty <difficult>", "empty <difficult>", "these objects count as not difficult"
)
OTHER_SIZE = Kind(
    "annotation for another image size",
    "annotations for another image size",
    boxes.EXPECTED_SIZE,
)
NO_SIZE = Kind(
    "annotation with a width or height of 0",
    "annotations with a width or height of 0",
    "the size is read from the image",
)

_Coordinate = Annotated[float, Field(allow_inf_nan=False)]
_Side = Annotated[float, Field(allow_inf_nan=False, ge=0)]


class _Size(TypedDict):
    width: _Side
    height: _Side


class _Box(TypedDict):
    xmin: _Coordinate
    ymin: _Coordinate
    xmax: _Coordinate
    ymax: _Coordinate


class _Object(TypedDict):
    name: Annotated[str, Field(min_length=1)]
    difficult: NotRequired[Annotated[int, Field(ge=0, le=1)]]
    bndbox: _Box


class _Annotation(TypedDict):
    size: NotRequired[_Size]
    id: NotRequired[Annotated[int, Field(ge=0, lt=2**63)]]
    object: list[_Object]


_ADAPTER: TypeAdapter[Any] = TypeAdapter(_Annotation)
_EXPECTED = {
    **dict.fromkeys(("xmin", "ymin", "xmax", "ymax"), "a number of pixels"),
    **dict.fromkeys(("width", "height"), "a number of pixels, at least 0"),
    "bndbox": "<bndbox> with xmin, ymin, xmax and ymax",
    "size": "<size> with width and height",
    "name": "the name of a class",
    "difficult": "0 or 1",
    "id": "a whole number >= 0 of 64 bits",
    "object": "objects",
}


@dataclass(frozen=True)
class VocImage:
    """One image of the list, as its annotation describes it.

    Attributes:
        file: The image.
        xml: Its annotation.
        id: Its ``<id>``; None if it has none.
        size_hw: Height and width in pixels; None if they are not given.
        names: Class of each object.
        difficult: Whether an object does not count in an evaluation, int [n].
        boxes_xyxy: Corners in pixels as they are written, float64 [n, 4].
    """

    file: Path
    xml: Path
    id: int | None
    size_hw: tuple[float, float] | None
    names: tuple[str, ...]
    difficult: np.ndarray
    boxes_xyxy: np.ndarray


def read_text(path: Path) -> str:
    """Content of a list or of labels: UTF-8, with or without a byte order mark.

    Raises:
        DataError: It is missing, or in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 text; expected that encoding") from error


def read_labels(path: Path) -> list[str]:
    """Class names of a list of labels, one per line.

    Raises:
        DataError: It cannot be read, a name occurs twice, or a line between names is blank.
    """
    names = [line.strip() for line in read_text(path).rstrip().split("\n")]
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"'{path}' line {number} is blank; expected the name of a class")
        first = names.index(name) + 1
        if first < number:
            raise DataError(
                f"'{path}' line {number}: '{name}' is the name of line {first} too; expected every "
                "class once"
            )
    return names


def class_names(path: Path | None) -> list[str]:
    """Class names of a list of labels (see `read_labels`); those of VOC if there is none."""
    if path is None:
        from ppdet.data.source.voc import pascalvoc_label

        return [*pascalvoc_label()]
    return read_labels(path)


def read_list(path: Path, images: Path, findings: Findings, most: int = -1) -> list[VocImage]:
    """Read the annotations of a list of images.

    Args:
        path: Each line has the name of an image and that of its annotation; blank ones are skipped.
        images: Folder that names are relative to.
        findings: Receives faults of the list and of annotations; such images are not returned.
        most: Number of images to read; -1 for all.

    Raises:
        DataError: The list cannot be read.
    """
    found: list[VocImage] = []
    for number, text in enumerate(read_text(path).splitlines(), start=1):
        if 0 < most <= len(found):
            break
        parts = text.split()
        if len(parts) == 2:
            image = _read_image(images / parts[0], images / parts[1], findings)
            found += [image] if image else []
        elif parts:
            findings.fault(NOT_TWO, f"'{path}' line {number}: '{text.strip()}'")
    return found


def check_classes(images: Sequence[VocImage], classes: Sequence[str], findings: Findings) -> None:
    """Add a fault for every object whose class is not in the list of labels."""
    for image in images:
        for number, name in enumerate(image.names, start=1):
            if name not in classes:
                near = nearest(name, classes)
                findings.fault(UNKNOWN_CLASS, f"{_place(image.xml, number)} '{name}'{near}")


def check_boxes(
    image: VocImage, size_hw: tuple[float, float], findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Compare an annotation with the size of its image, and limit its boxes to the image.

    ppdet leaves one pixel free at the right and at the bottom.

    Args:
        image: The annotation.
        size_hw: Height and width of the image in pixels once it is decoded.
        findings: Receives faults and remarks.

    Returns:
        Boxes float32 [m, 4] as corners in pixels, and the indices of their objects, int [m].
    """
    if image.size_hw and 0 in image.size_hw:
        findings.remark(NO_SIZE, f"'{image.xml}'")
    elif image.size_hw and tuple(image.size_hw) != tuple(size_hw):
        stated = "x".join(f"{side:g}" for side in reversed(image.size_hw))
        real = "x".join(f"{side:g}" for side in reversed(size_hw))
        findings.fault(OTHER_SIZE, f"'{image.xml}' {stated}, '{image.file}' is {real}")
    places = [f"{_place(image.xml, i)} ({name})" for i, name in enumerate(image.names, start=1)]
    kept = boxes.check_corners(image.boxes_xyxy, size_hw, places, findings)
    height, width = size_hw
    limited = boxes.limited(image.boxes_xyxy, (height - 1, width - 1))
    return limited[kept].astype(np.float32), kept


def _place(xml: Path, number: int) -> str:
    return f"'{xml}' object {number}"


def _read_image(file: Path, xml: Path, findings: Findings) -> VocImage | None:
    content = read_tags(xml, findings)
    if content is None:
        return None
    for number, entry in enumerate(content["object"], start=1):
        if entry.get("difficult") == "":
            del entry["difficult"]
            findings.remark(NOT_DIFFICULT, _place(xml, number))
    if not findings.check(_ADAPTER, content, lambda path: _where(xml, path), _EXPECTED):
        return None
    valid = _ADAPTER.validate_python(content)
    size, objects = valid.get("size"), valid["object"]
    corners = [[entry["bndbox"][key] for key in _Box.__annotations__] for entry in objects]
    return VocImage(
        file,
        xml,
        valid.get("id"),
        (size["height"], size["width"]) if size else None,
        tuple(entry["name"] for entry in objects),
        np.array([entry.get("difficult", 0) for entry in objects], np.int32),
        np.array(corners, np.float64).reshape(-1, 4),
    )


def _where(xml: Path, path: Sequence[Any]) -> str:
    if path[0] == "object" and len(path) > 1:
        return f"{_place(xml, path[1] + 1)} " + ".".join(map(str, path[2:]))
    return f"'{xml}' " + ".".join(map(str, path))
