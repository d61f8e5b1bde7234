"""Checks the annotations of faces: WIDER FACE's text file, as ppdet's reader will take it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from slim_det.core.errors import DataError
from slim_det.core.files import IMAGE_SUFFIXES
from slim_det.evaluate.widerface.files import image_key, image_name
from slim_det.evaluate.widerface.truth import read_ground_truth, read_text, require_known

_SUFFIXES = frozenset(suffix for s in IMAGE_SUFFIXES for suffix in (s, s.upper()))

logger = logging.getLogger("slim_det")


def check_faces(
    name: str, annotations: Path, images: Path, limit: int = -1, ground_truth: str | None = None
) -> list[Path]:
    """Check annotations of faces, and the ground truth that they are evaluated with.

    Args:
        name: ``TrainDataset`` or ``EvalDataset``, for messages.
        annotations: Text file in WIDER FACE's format.
        images: Folder that its names are relative to.
        limit: ``sample_num`` of the data set; how many images are read, -1 for all.
        ground_truth: As `slim_det.evaluate.widerface.truth.faces_of` takes it.

    Returns:
        The images.

    Raises:
        DataError: The file is malformed or cut short, has no faces, or names an image in a way that
            ppdet overlooks; or the ground truth is missing, malformed or of other images.
    """
    from ppdet.data.source.widerface import WIDERFaceDataSet

    try:
        truth = read_text(annotations)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if not sum(map(len, truth.faces)):
        raise DataError(f"{name}: '{annotations}' has no faces")
    _require_read_names(name, annotations, truth.names)
    reader = WIDERFaceDataSet("", str(images), os.path.abspath(annotations), ["image"])
    try:
        reader.parse_dataset()
    except (ValueError, LookupError) as error:
        raise DataError(
            f"{name}: '{annotations}': ppdet cannot read it ({error}); expected numbers with one "
            "space between them"
        ) from error
    flat = sum(int((np.asarray(faces)[:, 2:] == 0).any(axis=1).sum()) for faces in truth.faces)
    if flat:
        logger.warning("%s: %d faces have no width or height: nothing learns them", name, flat)
    used = reader.roidbs[:limit] if limit > 0 else reader.roidbs
    if ground_truth:
        names = [image_key(record["im_file"], images) for record in used]
        require_known(names, read_ground_truth(ground_truth), ground_truth)
    return [Path(record["im_file"]) for record in used]


def _require_read_names(name: str, annotations: Path, images: tuple[str, ...]) -> None:
    """Make sure that ppdet finds every image; the faces of one that it passes over go elsewhere."""
    known = frozenset(images)
    for number, line in enumerate(annotations.read_text(encoding="utf-8").splitlines(), start=1):
        if image_name(line.strip()) not in known:
            continue
        suffix = Path(line).suffix
        if " " in line or suffix not in _SUFFIXES:
            raise DataError(
                f"{name}: '{annotations}' line {number}: ppdet does not read '{line}'; expected a "
                f"name without spaces that ends in {', '.join(IMAGE_SUFFIXES)}"
            )
