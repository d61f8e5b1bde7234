"""Checks a data set with WIDER FACE's annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slim_det.evaluate.data import boxes
from slim_det.evaluate.data.findings import Findings, Kind
from slim_det.evaluate.widerface.face_text import FaceText, read_face_text, require_distinct
from slim_det.evaluate.widerface.files import image_key, image_name
from slim_det.evaluate.widerface.truth import read_ground_truth, require_known

FLAT = Kind("face of zero width or height", "faces of zero width or height", "they are not learned")
INVALID = Kind("face marked invalid", "faces marked invalid", "they are used like the others")
_INVALID = 7
"""Column of a row of ten that marks a face as invalid."""


@dataclass(frozen=True)
class Faces:
    """Images and faces that a data set uses.

    Attributes:
        path: The annotation file.
        files: The images.
        content: The annotations of these images.
    """

    path: Path
    files: list[Path]
    content: FaceText


def read_faces(path: Path, images: Path, most: int = -1) -> Faces:
    """Read face annotations.

    Args:
        path: Text file in WIDER FACE's format.
        images: Folder that its image names are relative to.
        most: Number of images to read, -1 for all.

    Raises:
        DataError: The file is malformed or truncated, names an image twice, or one that is not in
            the folder.
    """
    content = read_face_text(path)
    end = most if most > 0 else len(content.files)
    used = FaceText(content.files[:end], content.rows[:end], content.line_numbers[:end])
    files = [images / name for name in used.files]
    require_distinct([image_key(file, images) for file in files], path)
    return Faces(path, files, used)


def check_boxes(
    faces: Faces, sizes_hw: Sequence[tuple[int, int] | None], findings: Findings
) -> list[np.ndarray]:
    """Limit faces to their images, and say where they do not lie inside.

    Args:
        faces: The annotations.
        sizes_hw: Height and width of each image in pixels; None if it cannot be read.
        findings: Receives faults and remarks.

    Returns:
        For each image float32 [n, 4]: corners in pixels.
    """
    limited = []
    for size, rows, numbers in zip(sizes_hw, faces.content.rows, faces.content.line_numbers):
        corners = np.hstack((rows[:, :2], rows[:, :2] + rows[:, 2:4]))
        if size is None:
            limited.append(corners.astype(np.float32))
            continue
        flat = (rows[:, 2:4] == 0).any(axis=1)
        places = [f"line {number}" for number in numbers]
        for i in np.flatnonzero(flat):
            findings.remark(FLAT, places[i])
        for i in np.flatnonzero(rows[:, _INVALID : _INVALID + 1].any(axis=1) & ~flat):
            findings.remark(INVALID, places[i])
        rest = [place for place, is_flat in zip(places, flat) if not is_flat]
        boxes.check_corners(corners[~flat], size, rest, findings, last=0)
        limited.append(boxes.limited(corners, size).astype(np.float32))
    return limited


def check_ground_truth(faces: Faces, ground_truth: str) -> None:
    """Check that the ground truth of an evaluation contains all images (see `faces_of`).

    Raises:
        DataError: It is missing or malformed, or does not contain them.
    """
    names = [image_name(name) for name in faces.content.files]
    require_known(names, read_ground_truth(ground_truth), ground_truth)


def files_of(ground_truth: str) -> list[Path]:
    """The files of a ground truth: those of a folder, or itself."""
    path = Path(ground_truth)
    return sorted(path.glob("*.mat")) if path.is_dir() else [path]
