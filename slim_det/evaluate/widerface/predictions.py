"""The boxes of an evaluation as files of WIDER FACE's text."""

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
    """Keeps the boxes of every image, to be written when all have come.

    Args:
        folder: Made where it does not exist.
        dataset: ppdet's ``WIDERFaceDataSet``, parsed.

    Raises:
        ConfigError: The folder holds something else than predictions of these images.
    """

    def __init__(self, folder: str | Path, dataset: Any) -> None:
        self._folder = folder
        self._names = image_names(dataset)
        self._found: dict[str, Detections] = {}
        require_own_folder(folder, self._names)

    def update(self, batch: dict[str, Any], found: Sequence[Detections]) -> None:
        """Take the boxes of one batch; ``im_id`` says which images these are."""
        for image, boxes in zip(np.asarray(batch["im_id"]).ravel(), found):
            self._found[self._names[int(image)]] = boxes

    def write(self) -> None:
        """Write one text file an image, best box first.

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
    """Make sure that a folder holds predictions of these images and nothing else.

    Raises:
        ConfigError: It is a file, or holds another one.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--save_pred '{folder}' is a file; expected a folder")
    own = {f"{name}.txt" for name in names}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in own:
            raise ConfigError(
                f"--save_pred '{folder}' holds '{name}', which is no prediction of these images; "
                "expected an empty or new folder"
            )
