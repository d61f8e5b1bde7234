"""AP on WIDER FACE inside an evaluation: our own loop, or that of ppdet's Trainer."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Callable

import numpy as np
from ppdet.metrics.metrics import Metric

from slim_det.core.errors import ConfigError, DataError
from slim_det.evaluate.widerface.files import image_key, write_prediction, xywh_of
from slim_det.evaluate.widerface.scores import WiderFaceAp
from slim_det.evaluate.widerface.scoring import SETTINGS
from slim_det.evaluate.widerface.truth import GroundTruth, read_ground_truth

logger = logging.getLogger("slim_det")


class FaceAp:
    """AP of a face detector on a ``WIDERFaceDataSet``, image by image.

    Where the ground truth has more images than the data set, those that are evaluated count and
    ``bands`` says how many they are.

    Args:
        ground_truth: The official folder of `.mat` files, or a text file like
            `wider_face_val_bbx_gt.txt`; None for the annotations of the data set itself.
        save_pred: Folder that receives one text file an image when all has been scored.

    Attributes:
        ap: Mean of easy, medium and hard.
        ap50: The same: WIDER FACE asks for an IoU of 0.5.
        per_class: ``easy``, ``medium`` and ``hard``.
        bands: What these are: ``official``, or the least heights of the faces.
    """

    name = "widerface_ap"

    def __init__(self, ground_truth: str | None = None, save_pred: str | None = None) -> None:
        self.ap = self.ap50 = 0.0
        self.per_class: dict[str, float] = {}
        self.bands = ""
        self._source = ground_truth
        self._folder = save_pred
        self._names: list[str] = []
        self._found: dict[str, np.ndarray] = {}

    def start(self, dataset: Any) -> None:
        """Read the ground truth; nothing is detected before it is known to be the right one.

        Args:
            dataset: ppdet's ``WIDERFaceDataSet``, parsed.

        Raises:
            DataError: The ground truth is missing or malformed, or is of other images.
            ConfigError: The folder for predictions holds something else.
        """
        self._names = image_names(dataset)
        source = self._source or dataset.get_anno()
        self._truth = read_ground_truth(source)
        require_known(self._names, self._truth, source)
        if self._folder:
            require_own_folder(self._folder, self._names)
        if self.is_part:
            logger.warning(
                "%d of the %d images of the ground truth are evaluated",
                len(self._names),
                len(self._truth.names),
            )
        self.clear()

    @property
    def is_part(self) -> bool:
        """Whether the ground truth has images that the data set has not."""
        return len(self._names) < len(self._truth.names)

    def clear(self) -> None:
        """Forget every detection."""
        self._scoring = WiderFaceAp(self._truth)
        self._found = {}

    def update(self, batch: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Judge the boxes of one batch.

        Args:
            batch: Of ppdet's reader; ``im_id`` is used.
            outputs: ``bbox`` and ``bbox_num`` of a detector.

        Raises:
            DataError: A box or a score is not finite.
        """
        for image, boxes in zip(np.asarray(batch["im_id"]).ravel(), image_boxes(outputs)):
            name = self._names[int(image)]
            self._scoring.update(name, boxes)
            if self._folder:
                self._found[name] = boxes

    def accumulate(self, dataset: Any) -> None:
        """Score everything judged, then write the predictions if that was asked for.

        Raises:
            ConfigError: The folder for predictions cannot be written to.
        """
        result = self._scoring.accumulate(only_updated=self.is_part)
        self.bands = result.bands
        if self.is_part:
            self.bands += f", {result.num_images} of {len(self._truth.names)} images"
        self.per_class = {setting: getattr(result, setting) for setting in SETTINGS}
        self.ap = self.ap50 = sum(self.per_class.values()) / len(SETTINGS)
        if self._folder:
            write_predictions(self._folder, self._found)


class FaceMetric(Metric):
    """`FaceAp` as ppdet's Trainer uses a metric, in place of its ``WiderFaceMetric``.

    Args:
        dataset: The parsed ``EvalDataset``.
        ground_truth: As for `FaceAp`.
        detect: Used instead of the boxes that the Trainer gives, for evaluation at several scales.
    """

    def __init__(
        self,
        dataset: Any,
        ground_truth: str | None = None,
        detect: Callable[[dict[str, Any]], dict[str, np.ndarray]] | None = None,
    ) -> None:
        self._dataset = dataset
        self._detect = detect
        self._results: dict[str, list[float]] = {}
        self._ap = FaceAp(ground_truth)
        self._ap.start(dataset)

    def reset(self) -> None:
        """Forget boxes and results."""
        self._ap.clear()
        self._results = {}

    def update(self, data: dict[str, Any], outs: dict[str, Any]) -> None:
        """Judge the boxes of one batch."""
        self._ap.update(data, self._detect(data) if self._detect else outs)

    def accumulate(self) -> None:
        """Score everything judged since the last reset."""
        self._ap.accumulate(self._dataset)
        self._results = {"widerface": [self._ap.ap, *self._ap.per_class.values()]}

    def log(self) -> None:
        """One line."""
        values = ", ".join(f"{name} {value:.4f}" for name, value in self._ap.per_class.items())
        logger.info("%s %.4f (%s; %s)", self._ap.name, self._ap.ap, values, self._ap.bands)

    def get_results(self) -> dict[str, list[float]]:
        """``widerface``: mean, easy, medium, hard; fractions."""
        return self._results


def image_names(dataset: Any) -> list[str]:
    """``event/name`` of every image of a parsed ``WIDERFaceDataSet``, at its ``im_id``."""
    folder = os.path.join(dataset.dataset_dir, dataset.image_dir)
    return [image_key(record["im_file"], folder) for record in dataset.roidbs]


def image_boxes(outputs: dict[str, Any]) -> list[np.ndarray]:
    """Boxes of each image of a batch.

    Args:
        outputs: ``bbox`` [N, 6] (class, score, xyxy) and ``bbox_num`` [batch]. Where a whole batch
            has no box, Paddle's NMS gives one row of a single -1.

    Returns:
        For each image float [n, 5]: xyxy in pixels, score.
    """
    boxes, counts = np.asarray(outputs["bbox"]), np.asarray(outputs["bbox_num"]).ravel()
    if boxes.shape[-1] != 6:
        boxes, counts = np.zeros((0, 6), np.float32), 0 * counts
    return np.split(boxes[:, [2, 3, 4, 5, 1]], np.cumsum(counts)[:-1])


def require_known(names: Collection[str], truth: GroundTruth, source: str | Path) -> None:
    """Make sure that a ground truth is that of the images.

    Args:
        names: ``event/name`` of the images.
        truth: The ground truth.
        source: Where it is from, for the message.

    Raises:
        DataError: An image is not in it; the first.
    """
    known = frozenset(truth.names)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise DataError(
            f"EvalDataset: image '{unknown}' is not in the ground truth '{source}'; expected one "
            f"of its {len(known)} images, such as '{truth.names[0]}'"
        )


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


def write_predictions(folder: str | Path, found: dict[str, np.ndarray]) -> None:
    """Write one text file an image, best box first.

    Args:
        folder: Made where it does not exist.
        found: ``event/name`` -> float [n, 5]: xyxy in pixels, score.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    for name, boxes in found.items():
        event, _, stem = name.rpartition("/")
        best_first = np.argsort(-boxes[:, 4], kind="stable")
        write_prediction(folder, event, stem, xywh_of(boxes[best_first]))
    logger.info("predictions of %d images are in '%s'", len(found), folder)
