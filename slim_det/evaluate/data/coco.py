"""Reads COCO's annotations, and fills in what an evaluation needs and many files leave out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import numpy as np
from pydantic import AfterValidator, Field, StrictFloat, StrictInt, StrictStr, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from slim_det.core.errors import DataError
from slim_det.evaluate.data import boxes
from slim_det.evaluate.data.findings import Findings, Kind

NO_AREA = Kind("annotation without area", "annotations without area", "width x height is taken")
NO_CROWD = Kind("annotation without iscrowd", "annotations without iscrowd", "0 is taken")
NO_ID = Kind("annotation without id", "annotations without id", "they are numbered")
ID_0 = Kind(
    "annotation with id 0",
    "annotations with id 0",
    "it gets a new one, because pycocotools counts no match with id 0",
)
NO_SIZE = Kind(
    "image without width and height",
    "images without width and height",
    "the size is read from the image",
)
OTHER_SIZE = Kind(
    "image of another size than stated",
    "images of another size than stated",
    boxes.EXPECTED_SIZE,
)
NEGATIVE = Kind(
    "box with a negative side", "boxes with a negative side", "expected [x, y, width, height]"
)
FLAT = Kind("box without area", "boxes without area", "they are left out")
BEYOND = Kind(
    "box partly outside its image",
    "boxes partly outside their images",
    "they are used as they are written",
)
IGNORED = Kind(
    "annotation with ignore: 1",
    "annotations with ignore: 1",
    "an evaluation counts them, a training leaves them out",
)
REPEATED = Kind(
    "annotation that repeats another",
    "annotations that repeat others",
    "each counts as an object of its own",
)
TOO_LARGE = Kind(
    "area above 1e10",
    "areas above 1e10",
    "expected pixels of the image; pycocotools counts no larger ones",
)
SAME_NAME = Kind(
    "name of several categories", "names of several categories", "expected a name for each"
)
UNKNOWN = {
    "category_id": Kind(
        "unknown category_id", "unknown category_ids", "expected the id of a category"
    ),
    "image_id": Kind("unknown image_id", "unknown image_ids", "expected the id of an image"),
}

_LISTS = ("images", "categories", "annotations")
_MOST_AREA = 1e10
_TOLERANCE = 1.0
"""Pixels that a box may reach over the edge unmentioned; tools round in different ways."""


def _shown(text: str) -> str:
    """Refuse text of JSON that is no text: half of a pair of characters."""
    text.encode("utf-8")
    return text


_Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
_OptionalNumber = Optional[_Number]
_Crowd = Literal[0, 1, True, False, None]


_Id = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
_Text = Annotated[StrictStr, Field(min_length=1), AfterValidator(_shown)]


class _Image(TypedDict):
    id: _Id
    file_name: _Text
    width: NotRequired[_OptionalNumber]
    height: NotRequired[_OptionalNumber]


class _Category(TypedDict):
    id: _Id
    name: _Text


class _Annotation(TypedDict):
    id: NotRequired[_Id]
    image_id: _Id
    category_id: _Id
    bbox: Annotated[list[_Number], Field(min_length=4, max_length=4)]
    area: NotRequired[_OptionalNumber]
    iscrowd: NotRequired[_Crowd]


class _File(TypedDict):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


_ADAPTER: TypeAdapter[Any] = TypeAdapter(_File)
_EXPECTED = {
    **dict.fromkeys(("id", "image_id", "category_id"), "a whole number of 64 bits"),
    **dict.fromkeys(("width", "height"), "a number of pixels"),
    **dict.fromkeys(_LISTS, "a list of entries with keys"),
    "bbox": "[x, y, width, height] in pixels",
    "area": "a number",
    "iscrowd": "0 or 1",
    "file_name": "the name of an image",
    "name": "the name of a class",
}


@dataclass(frozen=True)
class CocoFile:
    """Content of an annotation file whose structure is valid.

    Attributes:
        path: The file.
        images: Image entries.
        categories: Category entries.
        annotations: Annotation entries.
    """

    path: Path
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[dict[str, Any]]

    @property
    def classes(self) -> list[str]:
        """Name of each category, in the order of the file."""
        return [entry["name"] for entry in self.categories]


def read_coco(path: Path, findings: Findings) -> CocoFile | None:
    """Read and check an annotation file, without its images.

    Args:
        path: The file.
        findings: Receives faults and remarks.

    Returns:
        Its content; None if its structure is not valid.

    Raises:
        DataError: It is not a COCO annotation file at all.
    """
    content = _load(path)
    if not findings.check(_ADAPTER, content, _place, _EXPECTED):
        return None
    file = CocoFile(path, *(content[name] for name in _LISTS))
    for name in _LISTS:
        _check_ids(name, content[name], findings)
    for name, count in Counter(file.classes).items():
        if count > 1:
            findings.fault(SAME_NAME, f"'{name}'")
    _check_references(content, findings)
    for place, kind in _gaps(file.annotations):
        findings.remark(kind, place)
    return file


def check_boxes(
    file: CocoFile, sizes_hw: Sequence[tuple[int, int] | None], findings: Findings
) -> None:
    """Compare stated sizes and boxes with the images.

    Args:
        file: The annotations.
        sizes_hw: Height and width of each image in pixels; None if it cannot be read.
        findings: Receives faults and remarks.
    """
    known: dict[int, tuple[int, int]] = {}
    for entry, size in zip(file.images, sizes_hw):
        if size is None:
            continue
        known[entry["id"]] = size
        stated = (entry.get("height") or 0, entry.get("width") or 0)
        if min(stated) <= 0:
            findings.remark(NO_SIZE, f"'{entry['file_name']}'")
        elif stated != size:
            findings.fault(
                OTHER_SIZE,
                f"'{entry['file_name']}' {stated[1]}x{stated[0]}, it is {size[1]}x{size[0]}",
            )
    for number, entry in enumerate(file.annotations):
        if entry["image_id"] in known:
            _check_box(entry, number, known[entry["image_id"]], findings)
    _remark_repeated(file.annotations, findings)


def countable_objects(file: CocoFile, training: bool) -> Counter[str]:
    """Class -> number of objects that an evaluation, or a training, counts."""
    names = {entry["id"]: entry["name"] for entry in file.categories}
    return Counter(
        names.get(entry["category_id"], "unknown")
        for entry in file.annotations
        if _counts(entry, training) and min(entry["bbox"][2:]) > 0
    )


def images_without_objects(file: CocoFile, training: bool) -> list[str]:
    """Names of the images without an annotation that an evaluation, or a training, uses."""
    used = {entry["image_id"] for entry in file.annotations if _counts(entry, training)}
    return [entry["file_name"] for entry in file.images if entry["id"] not in used]


def _counts(entry: dict[str, Any], training: bool) -> bool:
    """Whether an annotation is no crowd, and not one that ppdet's training leaves out."""
    return not entry.get("iscrowd") and not (training and entry.get("ignore"))


def fill_in(content: dict[str, Any]) -> None:
    """Fill in ids, areas and ``iscrowd`` of annotations with boxes, in place.

    Sizes of images become 0; `slim_det.evaluate.data.records.fill_in_sizes` finds them.

    Args:
        content: An annotation file's content, as pycocotools holds it.
    """
    for image in content.get("images", ()):
        for side in ("height", "width"):
            image[side] = max(image.get(side) or 0, 0)
    entries = [entry for entry in content.get("annotations", ()) if "bbox" in entry]
    highest = max((entry.get("id") or 0 for entry in entries), default=0)
    for entry in entries:
        if not entry.get("id"):
            highest += 1
            entry["id"] = highest
        if _lacks_area(entry):
            entry["area"] = float(np.prod(entry["bbox"][2:]))
        entry["iscrowd"] = int(entry.get("iscrowd") or 0)


def _lacks_area(entry: dict[str, Any]) -> bool:
    return not (entry.get("area") or 0) > 0


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # which pycocotools does not read either
            raise ValueError("it begins with a byte order mark; expected UTF-8 without one")
        content = json.loads(text, object_pairs_hook=_distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not a COCO annotation file: {error}") from error
    wanted = f"'{path}' is not a COCO annotation file; expected images, categories and annotations"
    if not isinstance(content, dict) or not all(name in content for name in _LISTS):
        keys = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{wanted}, found {keys[:80] or 'nothing'}")
    empty = [name for name in _LISTS if not content[name]]
    if empty:
        raise DataError(f"{wanted}, none of them empty; {' and '.join(empty)} hold nothing")
    return content


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose last key of a name would win in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key '{key}' occurs twice in one object")
    return found


def _place(path: Sequence[Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f" {part}" for part in path).strip()


def _check_ids(name: str, entries: Sequence[dict[str, Any]], findings: Findings) -> None:
    times = Counter(entry["id"] for entry in entries if "id" in entry)
    kind = Kind(
        f"id of {name} that occurs again", f"ids of {name} that occur again", "expected each once"
    )
    for number, count in times.items():
        if count > 1:
            findings.fault(kind, f"{number} ({count} times)")


def _check_references(content: dict[str, Any], findings: Findings) -> None:
    known = {
        "image_id": {entry["id"] for entry in content["images"]},
        "category_id": {entry["id"] for entry in content["categories"]},
    }
    for number, entry in enumerate(content["annotations"]):
        for key, ids in known.items():
            if entry[key] not in ids:
                findings.fault(UNKNOWN[key], f"annotations[{number}] {entry[key]}")


def _gaps(annotations: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Kind]]:
    """What `fill_in` fills in, and where."""
    for number, entry in enumerate(annotations):
        place = f"annotations[{number}]"
        if not entry.get("id"):
            yield place, NO_ID if entry.get("id") is None else ID_0
        if _lacks_area(entry) and min(entry["bbox"][2:]) > 0:
            yield place, NO_AREA
        if entry.get("iscrowd") is None:
            yield place, NO_CROWD
        if entry.get("ignore"):
            yield place, IGNORED


def _remark_repeated(annotations: Sequence[dict[str, Any]], findings: Findings) -> None:
    seen: dict[tuple[Any, ...], int] = {}
    for number, entry in enumerate(annotations):
        key = (entry["image_id"], entry["category_id"], *entry["bbox"], bool(entry.get("iscrowd")))
        first = seen.setdefault(key, number)
        if first < number:
            findings.remark(REPEATED, f"annotations[{number}], as annotations[{first}]")


def _check_box(
    entry: dict[str, Any], number: int, size_hw: tuple[int, int], findings: Findings
) -> None:
    x, y, width, height = entry["bbox"]
    place = f"annotations[{number}] {entry['bbox']} of {size_hw[1]}x{size_hw[0]}"
    if width < 0 or height < 0:
        findings.fault(NEGATIVE, place)
    elif not width or not height:
        findings.remark(FLAT, place)
    elif x + width <= 0 or y + height <= 0 or x >= size_hw[1] or y >= size_hw[0]:
        findings.fault(boxes.OUTSIDE, place)
    elif (
        min(x, y) < -_TOLERANCE
        or x + width > size_hw[1] + _TOLERANCE
        or y + height > size_hw[0] + _TOLERANCE
    ):
        findings.remark(BEYOND, place)
    if (entry.get("area") or 0) > _MOST_AREA:
        findings.fault(TOO_LARGE, f"annotations[{number}] {entry['area']:g}")
