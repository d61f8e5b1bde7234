"""Detections of faces as text: one file an image, as WIDER FACE's evaluation and ppdet have them.

`FOLDER/<event>/<name>.txt` holds the name of the image, the number of detections, then a row
``x y w h score`` for each, in pixels; ppdet writes ``w = xmax - xmin + 1``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from slim_det.core.errors import DataError, nearest
from slim_det.core.files import IMAGE_SUFFIXES, write_text

logger = logging.getLogger("slim_det")

ROW_LENGTH = 5


def image_name(path: str | Path) -> str:
    """``event/name`` of an image, without the suffix of a picture; other dots stay."""
    text = PurePosixPath(path).as_posix()
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in IMAGE_SUFFIXES else text


def image_key(path: str | Path, image_dir: str | Path) -> str:
    """``event/name`` of an image from where it lies.

    Args:
        path: The image, as ppdet's reader names it.
        image_dir: Folder of the events, like `WIDER_val/images`.

    Raises:
        DataError: The image does not lie below that folder.
    """
    relative = os.path.relpath(path, image_dir)
    if relative.split(os.sep)[0] in (os.pardir, os.curdir):
        raise DataError(f"image '{path}' does not lie below image_dir '{image_dir}'")
    return image_name(Path(relative).as_posix())


def xywh_of(boxes_xyxy_score: np.ndarray) -> np.ndarray:
    """``x y w h score`` from corners, by ppdet's rule ``w = xmax - xmin + 1``; float64 [n, 5]."""
    rows = np.array(boxes_xyxy_score, np.float64).reshape(-1, ROW_LENGTH)
    rows[:, 2:4] += 1.0 - rows[:, :2]
    return rows


def write_prediction(
    folder: str | Path, event: str, stem: str, boxes_xywh_score: np.ndarray
) -> Path:
    """Write the detections of one image, with nine digits: what a float32 needs to come back.

    Args:
        folder: Of all predictions; made if it is not there.
        event: Folder of the image, like ``0--Parade``; may be empty.
        stem: Name of the image without suffix.
        boxes_xywh_score: float [n, 5], xywh in pixels; best first, if other tools read it.

    Returns:
        The file.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    rows = np.asarray(boxes_xywh_score).reshape(-1, ROW_LENGTH).tolist()
    lines = [str(PurePosixPath(event, stem)), str(len(rows))]
    lines += ["{:.9g} {:.9g} {:.9g} {:.9g} {:.9g}".format(*row) for row in rows]
    path = Path(folder, event, f"{stem}.txt")
    write_text(path, "\n".join(lines) + "\n")
    return path


def read_predictions(
    folder: str | Path, names: Collection[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Read the detections of a complete set, one image at a time.

    An image without a file has no detections; one line in the log says how many there are.

    Args:
        folder: Of all predictions. Only its `.txt` files are looked at.
        names: ``event/name`` of every image.

    Returns:
        For each image that has a file, its name and what `read_prediction` gives.

    Raises:
        DataError: There is no such folder or nothing in it, or a file belongs to no image; from
            the iterator: a file is malformed.
    """
    found = find_predictions(folder, names)
    if len(found) < len(names):
        logger.warning(
            "%d of %d images have no file in '%s': counted as images without detections",
            len(names) - len(found),
            len(names),
            folder,
        )
    return ((name, read_prediction(path)) for name, path in found.items())


def find_predictions(folder: str | Path, names: Collection[str]) -> dict[str, Path]:
    """The file of each image that has one, in the order of their paths.

    Raises:
        DataError: There is no such folder or nothing in it, or a file belongs to no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"folder of predictions '{folder}' does not exist")
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
            f"folder of predictions '{folder}' has no prediction; expected files EVENT/NAME.txt"
        )
    return found


def read_prediction(path: str | Path) -> np.ndarray:
    """Read the detections of one image.

    Returns:
        float64 [n, 5]: x y w h in pixels, score; in the order of the file.

    Raises:
        DataError: The file is empty or about another image, a row is malformed, a number is not
            finite, or there are not as many rows as it says; with the line.
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
            f"'{path}' line 1: names the image '{stated}'; expected '{path.stem}', like the file"
        )
    count = int(lines[1])
    if count != len(lines) - 2:
        raise DataError(
            f"'{path}' line 2: says {count} detections; found {len(lines) - 2} rows below"
        )
    return parse_rows(path, lines, range(2, len(lines)), (ROW_LENGTH,))


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, without ends.

    Raises:
        DataError: It cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not a text file: {error.reason}") from error


def parse_rows(
    path: Path, lines: Sequence[str], numbers: Sequence[int], lengths: tuple[int, ...]
) -> np.ndarray:
    """Numbers of several lines, all of one length.

    Args:
        path: Named in errors.
        lines: All lines of the file.
        numbers: Indices of those to parse.
        lengths: How many numbers a row may have.

    Returns:
        float64 [n, length]; without rows, the first of the lengths.

    Raises:
        DataError: A row has another length, or something that is not a finite number; the first.
    """
    if not len(numbers):
        return np.zeros((0, lengths[0]))
    try:
        table = np.loadtxt([lines[i] for i in numbers], ndmin=2, comments=None)
    except ValueError:
        table = np.zeros((0, 0))
    if table.shape[0] == len(numbers) and table.shape[1] in lengths and np.isfinite(table).all():
        return table
    raise _bad_row(path, lines, numbers, lengths)


def _bad_row(
    path: Path, lines: Sequence[str], numbers: Sequence[int], lengths: tuple[int, ...]
) -> DataError:
    """The first row that keeps a table from being one."""
    first = len(lines[numbers[0]].split())
    length = first if first in lengths else lengths[0]
    expected = str(length) if first in lengths else " or ".join(map(str, lengths))
    wrong = next((i for i in numbers if not _is_good(lines[i], length)), numbers[-1])
    return DataError(
        f"'{path}' line {wrong + 1}: expected {expected} finite numbers, found "
        f"'{lines[wrong].strip()}'"
    )


def _is_good(line: str, length: int) -> bool:
    if len(line.split()) != length:
        return False
    try:
        return bool(np.isfinite(np.loadtxt([line], comments=None)).all())
    except ValueError:
        return False
