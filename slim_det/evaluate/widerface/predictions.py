"""Saves the detections of an evaluation in WIDER FACE's text format."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.core.errors import ConfigError
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.widerface.files import write_prediction, xywh_of
from slim_det.evaluate.widerface.truth import image_names

logger = logging.getLogger("slim_det")


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
        require_own_folder(folder, self._names)

    def update(self, batch: dict[str, Any], found: Sequence[Detections]) -> None:
        """Add the detections of one batch; ``im_id`` identifies the images."""
        for image, boxes in zip(np.asarray(batch["im_id"]).ravel(), found):
            self._found[self._names[int(image)]] = boxes

    def write(self) -> None:
        """Write one text file per image, best box first.

        Raises:
            ConfigError: The folder cannot be written to.
        """
        for name, boxes in self._found.items():
            event, _, stem = name.rpartition("/")
            best_first = boxes[np.argsort(-boxes.scores, kind="stable")]
            rows = xywh_of(np.column_stack((best_first.boxes_xyxy, best_first.scores)))
            write_prediction(self._folder, event, stem, rows)
        logger.info("predictions of %d images are in '%s'", len(self._found), self._folder)


def require_own_folder(folder: str | Path, names: Collection[str]) -> None:
    """Check that a folder holds nothing but predictions of these images.

    Raises:
        ConfigError: It is a file, or holds another file.
    """
    folder = Path(folder)
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
