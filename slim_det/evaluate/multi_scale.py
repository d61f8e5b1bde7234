"""Detection of faces at several sizes of an image, voted into one set of boxes.

The test-time procedure of published face detectors (S3FD, PyramidBox, PaddleDetection's BlazeFace):
the image itself, its mirror image, and a row of smaller and larger copies. A smaller copy is
trusted for large faces, a larger one for small faces. Boxes that overlap become their mean,
weighted by score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import cv2
import numpy as np
import paddle
from ppdet.core.workspace import create
from ppdet.data.transform.operators import Decode, NormalizeImage

from slim_det.core.errors import ConfigError
from slim_det.evaluate.detections import Detections, parse_detections
from slim_det.evaluate.widerface.scoring import overlaps

ARCHITECTURES = ("BlazeFace",)
"""Detectors that take an image of any size."""

MAX_PIXELS = 678 * 1024 * 4
"""Area of the largest copy, before the allowance that `max_scale` takes off."""

ALLOWANCES = ((5, 50), (4, 40), (3, 30), (2, 20), (1.5, 10))
"""Hundredths taken off a largest scale of at least so much, after the 30 of every image."""

PYRAMID = (0.75, 1.25, 1.5, 1.75)
LARGE_PX = 30
"""A copy that is smaller than the image keeps boxes whose longer side is above this."""
SMALL_PX = 100
"""A copy that is larger keeps boxes whose shorter side is below this."""

VOTE_OVERLAP = 0.3
MOST_BOXES = 750
LEAST_SCORE = 0.01


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        scale: Of height and width.
        flip: Whether left and right change places.
        by_size: Whether only boxes are kept for which this scale is good.
    """

    scale: float
    flip: bool = False
    by_size: bool = True


def max_scale(height: int, width: int) -> float:
    """The largest scale at which an image is looked at; below 1 for a very large one.

    The square root of `MAX_PIXELS` over the area, cut to hundredths, less 0.3 and what `ALLOWANCES`
    takes off; at least 0.1. Counted in whole hundredths, so that no limit falls to a rounding.

    Args:
        height: In pixels.
        width: In pixels.
    """
    largest = Decimal(repr(math.sqrt(MAX_PIXELS / (height * width))))
    hundredths = int(largest * 100) - 30
    for least, taken in ALLOWANCES:
        if hundredths >= 100 * least:
            hundredths -= taken
            break
    return max(hundredths, 10) / 100


def views(limit: float) -> tuple[View, ...]:
    """The looks at an image.

    Itself and its mirror image, half of it, twice of it and so on to the limit, and the scales of
    the pyramid that do not exceed the limit; a quarter is always among them.

    Args:
        limit: Largest scale, as `max_scale` gives it.
    """
    base = min(limit, 1.0)
    half = 0.5 if limit >= 0.75 else 0.5 * limit
    larger = [min(2.0, limit)] if limit > 1 else [(half + limit) / 2]
    if limit > 2:
        while 2 * larger[-1] < limit:
            larger.append(2 * larger[-1])
        larger.append(limit)
    pyramid = [0.25, *(scale for scale in PYRAMID if scale <= limit)]
    first = (View(base, by_size=False), View(base, flip=True, by_size=False))
    return (*first, *(View(scale) for scale in (half, *larger, *pyramid)))


def keep_by_size(boxes: np.ndarray, scale: float) -> np.ndarray:
    """Of the boxes found at a scale, those whose size the scale is good for.

    Args:
        boxes: float [n, 5]: xyxy in pixels of the original image, score.
        scale: What is above 1 is for small faces, everything else for large ones.
    """
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    good = sides.min(axis=1) < SMALL_PX if scale > 1 else sides.max(axis=1) > LARGE_PX
    return boxes[good]


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes of a mirror image in the coordinates of the image.

    Args:
        boxes: float [n, 5]: xyxy in pixels, score.
        width: Of the image, in the same pixels.
    """
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped


def vote(boxes: np.ndarray) -> np.ndarray:
    """Make one box of those that overlap (box voting, Gidaris and Komodakis, ICCV 2015).

    The best box gathers every box with an IoU of at least `VOTE_OVERLAP`; together they become
    their mean, weighted by score, with the best score. So on with the rest. A box alone stays as it
    is.

    Args:
        boxes: float [n, 5]: xyxy in pixels, score.

    Returns:
        float64 [m, 5], best first: at most `MOST_BOXES`, of scores from `LEAST_SCORE`.
    """
    rest = np.asarray(boxes, np.float64).reshape(-1, 5)
    rest = rest[np.argsort(-rest[:, 4], kind="stable")]
    voted: list[np.ndarray] = []
    while len(rest) and len(voted) < MOST_BOXES and rest[0, 4] >= LEAST_SCORE:
        together = overlaps(_xywh(rest[:1]), _xywh(rest))[0] >= VOTE_OVERLAP
        together[0] = True
        group = rest[together]
        # As a shift of the best box, which is exactly zero for a box alone.
        shift = np.average(group[:, :4] - rest[0, :4], axis=0, weights=group[:, 4])
        voted.append(np.append(rest[0, :4] + shift, rest[0, 4]))
        rest = rest[~together]
    return np.stack(voted) if voted else np.zeros((0, 5))


class MultiScale:
    """Looks at the images of ``EvalDataset`` at several scales; takes a batch as a detector does.

    Image files are read again at their own size, whatever ``EvalReader`` resizes to; mean and
    deviation are those of its ``NormalizeImage``.

    Args:
        model: Detector of `ARCHITECTURES`.
        cfg: ppdet's configuration.

    Raises:
        ConfigError: The architecture does not take images of any size, or ``EvalReader`` does not
            normalise.
    """

    def __init__(self, model: paddle.nn.Layer, cfg: Any) -> None:
        require_any_size(cfg)
        model.eval()
        self._model = model
        self._normalize = normalization(cfg)
        dataset = create("EvalDataset")()
        dataset.parse_dataset()
        self._paths = [record["im_file"] for record in dataset.roidbs]

    def __call__(self, batch: dict[str, Any]) -> list[Detections]:
        """Detect on one batch, of which ``im_id`` is used."""
        paths = [self._paths[int(image)] for image in np.asarray(batch["im_id"]).ravel()]
        found = [self.detect(Decode().apply({"im_file": path})["image"]) for path in paths]
        return [
            Detections(boxes[:, :4], boxes[:, 4], np.zeros(len(boxes), np.int64)) for boxes in found
        ]

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Boxes of one image, voted.

        Args:
            image: uint8 [height, width, 3], RGB.

        Returns:
            float64 [n, 5]: xyxy in pixels, score; best first.
        """
        limit = max_scale(*image.shape[:2])
        return vote(np.concatenate([self._look(image, view) for view in views(limit)]))

    def _look(self, image: np.ndarray, view: View) -> np.ndarray:
        """Boxes of one view, in pixels of the original image."""
        height, width = image.shape[:2]
        size_hw = [max(1, int(side * view.scale)) for side in (height, width)]
        seen = cv2.resize(image, (size_hw[1], size_hw[0]))
        if view.flip:
            seen = np.ascontiguousarray(seen[:, ::-1])
        pixels = self._normalize.apply({"image": seen})["image"].transpose(2, 0, 1)[None]
        scale_hw = [size_hw[0] / height, size_hw[1] / width]
        with paddle.no_grad():
            outputs = self._model(
                {
                    "image": paddle.to_tensor(np.ascontiguousarray(pixels, np.float32)),
                    "im_shape": paddle.to_tensor([size_hw], "float32"),
                    "scale_factor": paddle.to_tensor([scale_hw], "float32"),
                }
            )
        (found,) = parse_detections(outputs)
        boxes = np.column_stack((found.boxes_xyxy, found.scores))
        if view.flip:
            boxes = flip_boxes(boxes, width)
        return keep_by_size(boxes, view.scale) if view.by_size else boxes


def require_any_size(cfg: Any) -> None:
    """Make sure that a detector can be evaluated at several scales.

    Raises:
        ConfigError: The data set is no WIDER FACE, or the detector takes a fixed size.
    """
    if cfg.metric != "WiderFace":
        raise ConfigError(
            f"--multi_scale needs metric: WiderFace; the configuration has metric: {cfg.metric}"
        )
    if cfg.architecture not in ARCHITECTURES:
        raise ConfigError(
            f"--multi_scale needs a detector for images of any size ({', '.join(ARCHITECTURES)}); "
            f"the configuration has architecture: {cfg.architecture}"
        )


def normalization(cfg: Any) -> NormalizeImage:
    """The operator that ``EvalReader`` normalises images with.

    Raises:
        ConfigError: It has none.
    """
    reader = cfg["EvalReader"]
    for key in ("sample_transforms", "batch_transforms"):
        for step in reader.get(key) or []:
            if "NormalizeImage" in step:
                return NormalizeImage(**step["NormalizeImage"])
    raise ConfigError("EvalReader has no NormalizeImage; --multi_scale needs mean and std of it")


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)
