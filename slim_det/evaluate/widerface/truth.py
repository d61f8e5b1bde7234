"""WIDER FACE ground truth, from the official `.mat` files or a text file with height bands."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.core.errors import DataError, reason_of
from slim_det.evaluate.widerface.face_text import read_face_text, require_distinct
from slim_det.evaluate.widerface.files import image_name, image_names
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
    if truth.bands == BANDS:
        records = zip(names, dataset.roidbs)
        sizes = {name: (int(r["h"]), int(r["w"])) for name, r in records if "h" in r}
        truth = limited_to_images(truth, sizes)
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
    require_distinct(names, folder)
    return GroundTruth(tuple(names), tuple(faces), tuple(counted), OFFICIAL)


def read_text(path: str | Path) -> GroundTruth:
    """Read a ground truth in WIDER FACE's text format; the settings are height bands.

    A face counts in a setting if its height is at least `MIN_HEIGHT_PX` and it is not marked
    invalid.

    Raises:
        DataError: The file is not valid (see `read_face_text`).
    """
    content = read_face_text(Path(path))
    names = tuple(map(image_name, content.files))
    faces = tuple(rows[:, :4] for rows in content.rows)
    return GroundTruth(names, faces, tuple(map(_counted, content.rows)), BANDS)


def limited_to_images(truth: GroundTruth, sizes_hw: Mapping[str, tuple[int, int]]) -> GroundTruth:
    """A ground truth with height bands whose faces end at the edges of their images.

    Args:
        truth: Read by `read_text`.
        sizes_hw: ``event/name`` -> height and width in pixels; other images are left as they are.
    """
    faces, counted = list(truth.faces), list(truth.counted)
    for i, name in enumerate(truth.names):
        if name in sizes_hw and len(faces[i]):
            faces[i] = _inside(faces[i], sizes_hw[name])
            counted[i] = counted[i] & _counted(faces[i])
    return GroundTruth(truth.names, tuple(faces), tuple(counted), truth.bands)


def _counted(rows: np.ndarray) -> np.ndarray:
    """Which faces count in each setting, bool [3, n], from rows of the text format."""
    least = np.array([[MIN_HEIGHT_PX[setting]] for setting in SETTINGS])
    counted: np.ndarray = rows[:, 3] >= least
    if rows.shape[1] > INVALID_COLUMN:
        counted &= rows[:, INVALID_COLUMN] == 0
    return counted


def _inside(faces_xywh: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    starts, ends = faces_xywh[:, :2], faces_xywh[:, :2] + faces_xywh[:, 2:]
    edges = size_hw[::-1]
    starts = np.clip(starts, 0, edges)
    return np.hstack((starts, np.clip(ends, 0, edges) - starts))


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), variable_names=list(keys))
    except Exception as error:  # damaged files raise zlib.error, ValueError, TypeError, ...
        reason = reason_of(error)
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
