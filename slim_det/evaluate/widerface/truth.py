"""WIDER FACE ground truth, from the official `.mat` files or a text file with height bands."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.core.errors import DataError, one_line
from slim_det.evaluate.widerface.files import image_name, image_names, parse_rows, read_lines
from slim_det.evaluate.widerface.scoring import SETTINGS

logger = logging.getLogger("slim_det")

MIN_HEIGHT_PX = {"easy": 50, "medium": 30, "hard": 10}
"""With a text file as ground truth: least height of a face that counts in each setting."""

OFFICIAL = "official"
BANDS = f"height>={'/'.join(str(MIN_HEIGHT_PX[setting]) for setting in SETTINGS)} px"
"""Marks results whose settings are the height bands above, not the official lists."""

FACES_FILE = "wider_face_val.mat"
LIST_FILES = tuple(f"wider_{setting}_val.mat" for setting in SETTINGS)

INVALID_COLUMN = 7
ROW_LENGTHS = (4, 10)
"""Values per row of the text file: x y w h, without or with WIDER FACE's six attributes."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The faces of every image.

    Attributes:
        names: ``event/name`` of each image, without suffix.
        faces: For each image float64 [n, 4]: x y w h in pixels, as stored.
        counted: For each image bool [3, n]: which faces count in easy, medium and hard.
        bands: `OFFICIAL` or `BANDS`: how the three settings are defined.
    """

    names: tuple[str, ...]
    faces: tuple[np.ndarray, ...]
    counted: tuple[np.ndarray, ...]
    bands: str


def read_ground_truth(path: str | Path) -> GroundTruth:
    """Read the official folder by `read_mat`, or a text file by `read_text`.

    Raises:
        DataError: The path does not exist or its content is malformed.
    """
    if os.path.isdir(path):
        return read_mat(path)
    if os.path.isfile(path):
        return read_text(path)
    raise DataError(
        f"ground truth '{path}' does not exist; expected a folder with {FACES_FILE} or a text file "
        "like wider_face_val_bbx_gt.txt"
    )


def faces_of(dataset: Any, ground_truth: str | None = None) -> tuple[list[str], GroundTruth]:
    """The images of a data set and a ground truth that contains all of them.

    Args:
        dataset: A parsed ppdet ``WIDERFaceDataSet``.
        ground_truth: The official folder of `.mat` files, or a text file like
            `wider_face_val_bbx_gt.txt`; None for the annotations of the data set itself.

    Returns:
        ``event/name`` of every image, indexed by ``im_id``, and the ground truth.

    Raises:
        DataError: The ground truth is missing, malformed or does not belong to these images.
    """
    names = image_names(dataset)
    source = ground_truth or dataset.get_anno()
    truth = read_ground_truth(source)
    require_known(names, truth, source)
    if len(names) < len(truth.names):
        logger.warning(
            "%d of the %d images of the ground truth are evaluated", len(names), len(truth.names)
        )
    return names, truth


def require_known(names: Collection[str], truth: GroundTruth, source: str | Path) -> None:
    """Check that a ground truth, read from ``source``, contains all images by ``event/name``.

    Raises:
        DataError: An image is not in it; the message names the first.
    """
    known = frozenset(truth.names)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise DataError(
            f"EvalDataset: image '{unknown}' is not in the ground truth '{source}'; expected one "
            f"of its {len(known)} images, such as '{truth.names[0]}'"
        )


def read_mat(folder: str | Path) -> GroundTruth:
    """Read the official ground truth: four `.mat` files of the data set's evaluation tools.

    Args:
        folder: Folder with `wider_face_val.mat` and `wider_{easy,medium,hard}_val.mat`.

    Raises:
        DataError: A file is missing, unreadable, or disagrees with the others.
    """
    folder = Path(folder)
    missing = [name for name in (FACES_FILE, *LIST_FILES) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"ground truth '{folder}' lacks {', '.join(missing)}; expected {FACES_FILE}, "
            f"{', '.join(LIST_FILES)}"
        )
    content = _load(folder / FACES_FILE, ("event_list", "file_list", "face_bbx_list"))
    events = [str(_only(event)) for event in content["event_list"].ravel()]
    files = _by_event(content["file_list"])
    boxes = _by_event(content["face_bbx_list"])
    lists = [_by_event(_load(folder / name, ("gt_list",))["gt_list"]) for name in LIST_FILES]
    sizes = [len(cell) for cell in files]
    for name, cells in zip((FACES_FILE, *LIST_FILES), (boxes, *lists)):
        if len(events) != len(files) or [len(cell) for cell in cells] != sizes:
            raise DataError(
                f"ground truth '{folder / name}' has other images than the file_list of "
                f"{FACES_FILE}; expected files of the same release"
            )
    names, faces, counted = [], [], []
    for event, images, event_boxes, *event_lists in zip(events, files, boxes, *lists):
        for i, image in enumerate(images):
            names.append(f"{event}/{_only(image)}")
            faces.append(np.asarray(event_boxes[i], np.float64).reshape(-1, 4))
            rows = [
                _chosen(cells[i], len(faces[-1]), f"'{folder / name}': {names[-1]}")
                for name, cells in zip(LIST_FILES, event_lists)
            ]
            counted.append(np.stack(rows))
    _require_distinct(names, folder)
    return GroundTruth(tuple(names), tuple(faces), tuple(counted), OFFICIAL)


def read_text(path: str | Path) -> GroundTruth:
    """Read a ground truth in WIDER FACE's text format; the settings are height bands.

    For each image: a line with its name, one with the number of faces, then a row for each face,
    ``x y w h`` in pixels with or without ``blur expression illumination invalid occlusion pose``.
    An image without faces has the number 0, usually followed by a row of zeros. A face counts in
    a setting if its height is at least `MIN_HEIGHT_PX` and it is not marked invalid.

    Raises:
        DataError: The file is malformed or truncated, or names an image twice.
    """
    path = Path(path)
    lines = read_lines(path)
    names, counts, numbers = _layout(path, lines)
    if not names:
        raise DataError(f"ground truth '{path}' is empty; expected name, number of faces, x y w h")
    _require_distinct(names, path)
    table = parse_rows(path, lines, numbers, ROW_LENGTHS)
    negative = np.flatnonzero((table[:, 2:4] < 0).any(axis=1))
    if len(negative):
        raise DataError(
            f"'{path}' line {numbers[negative[0]] + 1}: expected a width and a height of at least "
            f"0, found '{lines[numbers[negative[0]]].strip()}'"
        )
    least = np.array([[MIN_HEIGHT_PX[setting]] for setting in SETTINGS])
    counted = table[:, 3] >= least
    if table.shape[1] > INVALID_COLUMN:
        counted &= table[:, INVALID_COLUMN] == 0
    ends = np.cumsum(counts)[:-1]
    return GroundTruth(
        tuple(names),
        tuple(np.split(table[:, :4], ends)),
        tuple(np.split(counted, ends, axis=1)),
        BANDS,
    )


def _layout(path: Path, lines: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """Image names, numbers of faces, and indices of the lines with faces."""
    names: list[str] = []
    counts: list[int] = []
    rows: list[int] = []
    at = 0
    while at < len(lines):
        name = lines[at].strip()
        if not name:
            at += 1
            continue
        if _is_row(name):
            raise DataError(
                f"'{path}' line {at + 1}: expected the name of an image, found '{name}'; are there "
                "more faces than the stated number?"
            )
        text = lines[at + 1].strip() if at + 1 < len(lines) else ""
        if not text.isdecimal():
            raise DataError(
                f"'{path}' line {at + 2}: expected the number of faces of '{name}', found "
                f"{_shown(lines, at + 1)}"
            )
        count, start = int(text), at + 2
        at = start + count
        present = next(
            (i for i in range(start, at) if i >= len(lines) or not _is_row(lines[i])), at
        )
        if present < at:
            raise DataError(
                f"'{path}' line {present + 1}: expected {count} rows of faces of '{name}', found "
                f"{present - start} before {_shown(lines, present)}"
            )
        names.append(image_name(name))
        counts.append(count)
        rows.extend(range(start, at))
        if count == 0 and at < len(lines) and _is_row(lines[at]):
            at += 1
    return names, counts, rows


def _shown(lines: Sequence[str], index: int) -> str:
    return f"'{lines[index].strip()}'" if index < len(lines) else "the end of the file"


def _is_row(line: str) -> bool:
    """Whether a line is the row of a face, possibly malformed: it begins with two numbers."""
    try:
        return len([float(part) for part in line.split()[:2]]) == 2
    except ValueError:
        return False


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), variable_names=list(keys))
    except Exception as error:  # damaged files raise zlib.error, ValueError, TypeError, ...
        reason = one_line(error) or type(error).__name__
        raise DataError(f"ground truth '{path}' is not a readable .mat file: {reason}") from error
    for key in keys:
        if key not in content or content[key].dtype != object:
            raise DataError(f"ground truth '{path}' has no list '{key}'")
    return dict(content)


def _by_event(cells: np.ndarray) -> list[list[np.ndarray]]:
    """Convert MATLAB's nested cells to one list of arrays per event, one array per image."""
    return [
        [_only(image) for image in np.asarray(event, object).ravel()] for event in cells.ravel()
    ]


def _only(cell: Any) -> Any:
    """Unwrap MATLAB cells that hold a single element."""
    while isinstance(cell, np.ndarray) and cell.size == 1 and cell.dtype.kind in "OU":
        cell = cell.ravel()[0]
    return cell


def _chosen(indices: Any, count: int, where: str) -> np.ndarray:
    """The faces listed by 1-based indices, as bool [count]."""
    chosen = np.asarray(indices).astype(np.int64).ravel()
    wrong = chosen[(chosen < 1) | (chosen > count)]
    if len(wrong):
        raise DataError(f"ground truth {where} names face {wrong[0]}; expected 1 to {count}")
    mask = np.zeros(count, bool)
    mask[chosen - 1] = True
    return mask


def _require_distinct(names: Sequence[str], source: Path) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"ground truth '{source}' has the image '{repeated[0]}' twice; expected distinct "
            "names, ignoring suffixes"
        )
