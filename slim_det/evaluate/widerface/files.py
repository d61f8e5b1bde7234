"""Text files of face detections, one per image, in the format of WIDER FACE's evaluation and ppdet.

`FOLDER/<event>/<name>.txt` holds the image name, the number of detections, then one row
``x y w h score`` per detection, in pixels; ppdet writes ``w = xmax - xmin + 1``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from slim_det.core.errors import ConfigError, DataError, nearest
from slim_det.core.files import IMAGE_SUFFIXES, write_text
from slim_det.evaluate.detections import Detections

logger = logging.getLogger("slim_det")

ROW_LENGTH = 5

_NOT_FINITE = ("nan", "inf", "infinity")


def image_name(path: str | Path) -> str:
    """``event/name`` of an image, without an image file suffix; other dots stay."""
    text = PurePosixPath(path).as_posix()
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in IMAGE_SUFFIXES else text


def image_key(path: str | Path, image_dir: str | Path) -> str:
    """``event/name`` of an image inside ``image_dir``, such as `WIDER_val/images`.

    Raises:
        DataError: The image is not inside that folder.
    """
    relative = os.path.relpath(path, image_dir)
    if relative.split(os.sep)[0] in (os.pardir, os.curdir):
        raise DataError(f"image '{path}' is not inside image_dir '{image_dir}'")
    return image_name(Path(relative).as_posix())


def image_names(dataset: Any) -> list[str]:
    """``event/name`` of every image of a parsed ``WIDERFaceDataSet``, indexed by ``im_id``."""
    folder = os.path.join(dataset.dataset_dir, dataset.image_dir)
    return [image_key(record["im_file"], folder) for record in dataset.roidbs]


def xywh_of(boxes_xyxy_score: np.ndarray) -> np.ndarray:
    """Convert corners to ``x y w h score`` with ppdet's ``w = xmax - xmin + 1``; float64 [n, 5]."""
    rows = np.array(boxes_xyxy_score, np.float64).reshape(-1, ROW_LENGTH)
    rows[:, 2:4] += 1.0 - rows[:, :2]
    return rows


def write_prediction(folder: str | Path, name: str, boxes_xywh_score: np.ndarray) -> Path:
    """Write the detections of one image, with nine digits so that float32 values round-trip.

    Args:
        folder: Folder of all predictions; created if missing.
        name: ``event/name`` of the image.
        boxes_xywh_score: float [n, 5], xywh in pixels; best first if other tools will read it.

    Returns:
        Path of the file.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    rows = np.asarray(boxes_xywh_score).reshape(-1, ROW_LENGTH).tolist()
    lines = [name, str(len(rows))]
    lines += ["{:.9g} {:.9g} {:.9g} {:.9g} {:.9g}".format(*row) for row in rows]
    path = Path(folder, f"{name}.txt")
    write_text(path, "\n".join(lines) + "\n")
    return path


def read_predictions(
    folder: str | Path, names: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Read the detections of a data set, one image at a time.

    An image without a file has no detections; a warning says how many such images there are. See
    `find_predictions` for arguments and errors; the iterator raises those of `read_prediction`.

    Returns:
        For each image that has a file, its name and the array from `read_prediction`.
    """
    found = find_predictions(folder, names)
    if len(found) < len(names):
        logger.warning(
            "%d of %d images have no file in '%s' and count as images without detections",
            len(names) - len(found),
            len(names),
            folder,
        )
    return ((name, read_prediction(path)) for name, path in found.items())


def find_predictions(folder: str | Path, names: Collection[str]) -> dict[str, Path]:
    """Map each image that has a prediction file to it, sorted by path.

    Args:
        folder: Folder of all predictions; only its `.txt` files are read.
        names: ``event/name`` of every image.

    Raises:
        DataError: The folder is missing or has no predictions, or a file belongs to no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"prediction folder '{folder}' does not exist")
    known = frozenset(names)
    found = {}
    for path in sorted(folder.rglob("*.txt")):
        name = path.relative_to(folder).as_posix()[: -len(".txt")]
        if name not in known:
            raise DataError(
                f"'{path}' belongs to no image of the ground truth{nearest(name, names)}"
            )
        found[name] = path
    if not found:
        raise DataError(
            f"prediction folder '{folder}' has no predictions; expected files EVENT/NAME.txt"
        )
    return found


def read_prediction(path: str | Path) -> np.ndarray:
    """Read the detections of one image.

    Returns:
        float64 [n, 5]: x y w h in pixels, score; in the order of the file.

    Raises:
        DataError: The file is empty or names another image, a row is malformed, a number is not
            finite, or the number of rows differs from the stated one. The message names the line.
    """
    path = Path(path)
    lines = read_lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    if len(lines) < 2 or not lines[1].strip().isdecimal():
        raise DataError(
            f"'{path}' line {min(len(lines), 1) + 1}: expected the name of the image, then the "
            "number of detections"
        )
    stated = PurePosixPath(lines[0].strip())
    if path.stem not in (stated.name, image_name(stated.name)):
        raise DataError(
            f"'{path}' line 1: names the image '{stated}'; expected '{path.stem}', the file's name"
        )
    rows = parse_rows(path, lines, range(2, len(lines)), (ROW_LENGTH,))
    if int(lines[1]) != len(rows):
        raise DataError(
            f"'{path}' line 2: states {int(lines[1])} detections; {len(rows)} rows follow"
        )
    return rows


class PredictionFolder:
    """Collects the detections of every image and writes them at the end.

    Args:
        folder: Folder to write to; created if missing.
        dataset: A parsed ppdet ``WIDERFaceDataSet``.

    Raises:
        ConfigError: The folder holds anything other than predictions of these images.
    """

    def __init__(self, folder: str | Path, dataset: Any) -> None:
        self._folder = folder
        self._names = image_names(dataset)
        self._found: dict[str, Detections] = {}
        _require_own_folder(Path(folder), self._names)

    def update(self, batch: dict[str, Any], found: Sequence[Detections]) -> None:
        """Add the detections of one batch; ``im_id`` identifies the images."""
        for image, boxes in zip(np.asarray(batch["im_id"]).ravel(), found):
            self._found[self._names[int(image)]] = boxes

    def write(self) -> None:
        """Write one text file per image, best box first."""
        for name, boxes in self._found.items():
            best_first = boxes[np.argsort(-boxes.scores, kind="stable")]
            rows = xywh_of(np.column_stack((best_first.boxes_xyxy, best_first.scores)))
            write_prediction(self._folder, name, rows)
        logger.info("predictions of %d images are in '%s'", len(self._found), self._folder)


def _require_own_folder(folder: Path, names: Collection[str]) -> None:
    """Check that a folder, if it exists, holds nothing but predictions of these images."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--save_pred '{folder}' is a file; expected a folder")
    own = {f"{name}.txt" for name in names}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in own:
            raise ConfigError(
                f"--save_pred '{folder}' holds '{name}', not a prediction of these images; "
                "expected an empty or new folder"
            )


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file: UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not a text file: {error.reason}") from error


def parse_rows(
    path: Path, lines: Sequence[str], numbers: Sequence[int], lengths: tuple[int, ...]
) -> np.ndarray:
    """Parse rows of finite numbers that all have the same length.

    Args:
        path: Path of the file, for error messages.
        lines: All lines of the file.
        numbers: Indices of the lines to parse.
        lengths: Allowed numbers of values per row.

    Returns:
        float64 [n, length]; without rows, length is the first of ``lengths``.
    """
    if not len(numbers):
        return np.zeros((0, lengths[0]))
    try:
        table = _loaded(lines[i] for i in numbers)
    except ValueError:
        table = np.zeros((0, 0))
    if table.shape[0] == len(numbers) and table.shape[1] in lengths and np.isfinite(table).all():
        return table
    raise _bad_row(path, lines, numbers, lengths)


def _bad_row(
    path: Path, lines: Sequence[str], numbers: Sequence[int], lengths: tuple[int, ...]
) -> DataError:
    first = len(lines[numbers[0]].split())
    length = first if first in lengths else lengths[0]
    expected = str(length) if first in lengths else " or ".join(map(str, lengths))
    wrong = next((i for i in numbers if not _is_good(lines[i], length)), numbers[-1])
    text = next((part for part in lines[wrong].split() if not _is_number(part)), None)
    return DataError(
        f"'{path}' line {wrong + 1}: expected {expected} finite numbers, found "
        f"'{lines[wrong].strip()}'" + (f", where '{text}' is text" if text else "")
    )


def _loaded(rows: Iterable[str]) -> np.ndarray:
    """The numbers of rows.

    Before version 1.24.1, numpy writes beyond its memory where a row of certain lengths ends in a
    space, as WIDER FACE's rows do, and the process crashes later.
    """
    return np.loadtxt([row.strip() for row in rows], ndmin=2, comments=None)


def _is_good(line: str, length: int) -> bool:
    if len(line.split()) != length:
        return False
    try:
        return bool(np.isfinite(_loaded([line])).all())
    except ValueError:
        return False


def _is_number(part: str) -> bool:
    return _is_good(part, 1) or part.strip("+-").lower() in _NOT_FINITE
