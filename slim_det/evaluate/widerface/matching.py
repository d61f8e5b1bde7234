"""WIDER FACE AP from stored matches, for evaluating many models on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim_det.core.errors import DataError
from slim_det.evaluate.image_matches import AddedImages, ImageMatches, image_indices, known_image
from slim_det.evaluate.widerface.files import xywh_of
from slim_det.evaluate.widerface.metric import image_names, require_known
from slim_det.evaluate.widerface.scoring import SETTINGS, average_precision, judge
from slim_det.evaluate.widerface.truth import read_ground_truth

_BITS = np.uint16(1) << np.arange(len(SETTINGS), dtype=np.uint16)


class FaceScorer(AddedImages):
    """The mean AP of easy, medium and hard, as `slim_det.evaluate.widerface.metric.FaceAp` has it.

    The three settings take the place of IoU thresholds: bit s of a match belongs to setting s of
    `SETTINGS`. Scores are stretched to 0 ... 1 over the images that are scored together.

    Args:
        dataset: ppdet's ``WIDERFaceDataSet``, parsed.
        ground_truth: The official folder of `.mat` files, or a text file; None for the
            annotations of the data set itself.
        num_images: Take only so many images of the batches that are added; None for all.

    Raises:
        DataError: The ground truth is missing or malformed, or is of other images.
    """

    name = "widerface_ap"

    def __init__(
        self, dataset: Any, ground_truth: str | None = None, num_images: int | None = None
    ) -> None:
        super().__init__(num_images)
        source = ground_truth or dataset.get_anno()
        truth = read_ground_truth(source)
        self._names = image_names(dataset)
        require_known(self._names, truth, source)
        faces = zip(truth.faces, truth.counted)
        self._annotated = dict(zip(truth.names, faces))

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Take the faces of the next images.

        Args:
            batch: What ``EvalReader`` gives; ``im_id`` int [batch, 1].

        Raises:
            DataError: An image comes twice.
        """
        for image in np.asarray(batch["im_id"]).reshape(-1).tolist():
            if self._is_full:
                return
            found = self._annotated.pop(self._names[image], None)
            if found is None:
                raise DataError(
                    f"EvalDataset: image '{self._names[image]}' comes twice; expected each image "
                    "once"
                )
            self._add(found, found[1].sum(axis=1))

    def match(self, index: int, boxes: np.ndarray) -> ImageMatches:
        """Judge the boxes of one image in every setting.

        Args:
            index: The image, in the order in which it was added.
            boxes: float32 [n, 6]: class, score, xyxy in pixels; in the detector's order.

        Returns:
            Matches with a bit for each setting, in the order given; the class is 0.

        Raises:
            ValueError: The image was not added.
        """
        faces, counted = known_image(self._truth, index)
        boxes = np.asarray(boxes, np.float32).reshape(-1, 6)
        rows = xywh_of(boxes[:, [2, 3, 4, 5, 1]])
        hits, proposals = judge(rows[:, :4], rows[:, 4], faces, counted)
        return ImageMatches(
            np.zeros(len(boxes), np.int16),
            boxes[:, 1].copy(),
            (_BITS @ hits).astype(np.uint16),
            (_BITS @ ~proposals).astype(np.uint16),
        )

    def ap(self, matches: Sequence[ImageMatches], images: Sequence[int] | None = None) -> float:
        """Mean AP of the settings; one in which no face counts has 0.

        Args:
            matches: Matches of one model.
            images: The image of each of the matches; it may repeat, and its faces then count as
                often. None for every image, in order.

        Raises:
            ValueError: There is not one image for each of the matches, or one is unknown.
        """
        chosen = image_indices(matches, images, self.num_images)
        faces = sum((self._counts[i] for i in chosen), np.zeros(len(SETTINGS), np.int64))
        scores, hits, ignored = (
            np.concatenate([np.zeros(0, kind), *(getattr(m, name) for m in matches)])
            for name, kind in (("scores", np.float32), ("hits", np.uint16), ("ignored", np.uint16))
        )
        values = [
            average_precision(scores, (hits & bit) > 0, (ignored & bit) == 0, int(count))
            for bit, count in zip(_BITS, faces)
        ]
        return sum(values) / len(values)
