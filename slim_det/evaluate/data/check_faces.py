"""Checks face annotations in WIDER FACE's text format, and that ppdet's reader accepts them."""

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
    """Check face annotations and the ground truth of their evaluation; returns the image paths.

    Args:
        name: ``TrainDataset`` or ``EvalDataset``, for error messages.
        annotations: Text file in WIDER FACE's format.
        images: Folder that its image names are relative to.
        limit: ``sample_num`` of the data set: number of images to read, -1 for all.
        ground_truth: See `slim_det.evaluate.widerface.truth.faces_of`.

    Raises:
        DataError: The file is malformed or truncated, has no faces, or names an image that ppdet
            does not read; or the ground truth is missing, malformed or does not belong to these
            images.
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
            f"{name}: ppdet cannot read '{annotations}' ({error}); expected numbers separated by "
            "one space"
        ) from error
    flat = sum(int((np.asarray(faces)[:, 2:] == 0).any(axis=1).sum()) for faces in truth.faces)
    if flat:
        logger.warning("%s: %d faces have zero width or height and are not learned", name, flat)
    used = reader.roidbs[:limit] if limit > 0 else reader.roidbs
    if ground_truth:
        names = [image_key(record["im_file"], images) for record in used]
        require_known(names, read_ground_truth(ground_truth), ground_truth)
    return [Path(record["im_file"]) for record in used]


def _require_read_names(name: str, annotations: Path, images: tuple[str, ...]) -> None:
    """Check that ppdet reads every image name; it adds the faces of a skipped one to another."""
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
