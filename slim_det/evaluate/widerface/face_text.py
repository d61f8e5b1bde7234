"""WIDER FACE's text format for the faces of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slim_det.core.errors import DataError
from slim_det.core.files import IMAGE_SUFFIXES
from slim_det.evaluate.widerface.files import image_name, parse_rows, read_lines

_MOST_DIGITS = 9
"""Digits of a number of faces."""

ROW_LENGTHS = (4, 10)
"""Values per row: x y w h, without or with WIDER FACE's six attributes."""


@dataclass(frozen=True, eq=False)
class FaceText:
    """Content of a text file.

    Attributes:
        files: Name of each image, as written.
        rows: For each image float64 [n, 4 or 10]: x y w h in pixels, then the attributes.
        line_numbers: For each image the line of each row, counted from 1.
    """

    files: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    line_numbers: tuple[np.ndarray, ...]


def read_face_text(path: Path) -> FaceText:
    """Read a text file with the faces of images.

    For each image: a line with its name, one with the number of faces, then a row for each face,
    ``x y w h`` in pixels with or without ``blur expression illumination invalid occlusion pose``.
    An image without faces has the number 0, usually followed by a row of zeros.

    Raises:
        DataError: The file is malformed or truncated, and the message names the line; or it names
            an image twice.
    """
    lines = read_lines(path)
    names, counts, numbers = _layout(path, lines)
    if not names:
        raise DataError(f"ground truth '{path}' is empty; expected name, number of faces, x y w h")
    require_distinct(list(map(image_name, names)), path)
    table = parse_rows(path, lines, numbers, ROW_LENGTHS)
    negative = np.flatnonzero((table[:, 2:4] < 0).any(axis=1))
    if len(negative):
        raise DataError(
            f"'{path}' line {numbers[negative[0]] + 1}: expected a width and a height of at least "
            f"0, found '{lines[numbers[negative[0]]].strip()}'"
        )
    ends = np.cumsum(counts)[:-1]
    return FaceText(
        tuple(names),
        tuple(np.split(table, ends)),
        tuple(np.split(np.asarray(numbers, np.int64) + 1, ends)),
    )


def require_distinct(names: Sequence[str], source: Path) -> None:
    """Check that no image occurs twice; DataError if one does.

    Args:
        names: ``event/name`` of each image, without suffix.
        source: What names them, for the error message.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"ground truth '{source}' has the image '{repeated[0]}' twice; expected distinct "
            "names, ignoring suffixes"
        )


def _layout(path: Path, lines: Sequence[str]) -> tuple[list[str], list[int], list[int]]:
    """Names of images, numbers of faces, and indices of the lines with faces."""
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
        if not text.isdecimal() or len(text) > _MOST_DIGITS:
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
        names.append(name)
        counts.append(count)
        rows.extend(range(start, at))
        if count == 0 and at < len(lines) and _is_zeros(lines[at]):
            at += 1
    return names, counts, rows


def _shown(lines: Sequence[str], index: int) -> str:
    return f"'{lines[index].strip()}'" if index < len(lines) else "the end of the file"


def _is_zeros(line: str) -> bool:
    """Whether a line is the row of zeros that stands for no face."""
    return set(line.split()) == {"0"}


def _is_row(line: str) -> bool:
    """Whether a line is the row of a face, possibly malformed: it begins with two numbers."""
    if line.strip().lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        return len([float(part) for part in line.split()[:2]]) == 2
    except ValueError:
        return False
