"""Multi-scale face detection with box voting.

The test-time procedure of published face detectors (S3FD, PyramidBox, PaddleDetection's BlazeFace):
the image itself, its mirror image, and several smaller and larger copies. Smaller copies contribute
only large faces, larger ones only small faces. Overlapping boxes are replaced by their
score-weighted mean.
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
from slim_det.detectors.image_size import ANY_SIZE_ARCHITECTURES
from slim_det.evaluate.detections import Detections, parse_detections
from slim_det.evaluate.widerface.scoring import overlaps

MAX_PIXELS = 678 * 1024 * 4
"""Area of the largest copy in pixels, before `max_scale` subtracts an allowance."""

ALLOWANCES = ((5, 50), (4, 40), (3, 30), (2, 20), (1.5, 10))
"""(largest scale, hundredths): what `max_scale` subtracts above that scale, in addition to 30."""

PYRAMID = (0.75, 1.25, 1.5, 1.75)
LARGE_PX = 30
"""Copies smaller than the image keep boxes whose longer side exceeds this."""
SMALL_PX = 100
"""Copies larger than the image keep boxes whose shorter side is below this."""

VOTE_OVERLAP = 0.3
MAX_BOXES = 750
MIN_SCORE = 0.01


@dataclass(frozen=True)
class View:
    """One resized, possibly mirrored copy of an image.

    Attributes:
        scale: Scale factor of height and width.
        flip: Whether the copy is mirrored left to right.
        by_size: Whether only boxes of a size that suits this scale are kept.
    """

    scale: float
    flip: bool = False
    by_size: bool = True


def max_scale(height: int, width: int) -> float:
    """The largest scale of an image of this size in pixels; below 1 for a very large image.

    The square root of `MAX_PIXELS` over the area, truncated to hundredths, minus 0.3 and minus the
    allowance of `ALLOWANCES`; at least 0.1. Computed in integer hundredths, so that rounding does
    not decide at a limit.
    """
    largest = Decimal(repr(math.sqrt(MAX_PIXELS / (height * width))))
    hundredths = int(largest * 100) - 30
    allowance = next((taken for least, taken in ALLOWANCES if hundredths >= 100 * least), 0)
    return max(hundredths - allowance, 10) / 100


def views(limit: float) -> tuple[View, ...]:
    """The views of an image whose `max_scale` is ``limit``.

    The image and its mirror image, half the size, doublings up to the limit, and the scales of the
    pyramid that do not exceed the limit; one quarter is always included.
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
    """Keep the boxes whose size suits the scale at which they were found.

    Args:
        boxes: float [n, 5]: xyxy in pixels of the original image, score.
        scale: Above 1 small faces are kept, otherwise large ones.
    """
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    good = sides.min(axis=1) < SMALL_PX if scale > 1 else sides.max(axis=1) > LARGE_PX
    return boxes[good]


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Map boxes [n, 5] (xyxy, score) of the mirrored image to coordinates of the original."""
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped


def vote(boxes: np.ndarray) -> np.ndarray:
    """Merge overlapping boxes (box voting, Gidaris and Komodakis, ICCV 2015).

    The best box is grouped with every box that overlaps it with an IoU of at least `VOTE_OVERLAP`.
    The group is replaced by its score-weighted mean with the best score; then the rest is
    processed likewise. A box without overlaps is unchanged.

    Args:
        boxes: float [n, 5]: xyxy in pixels, score.

    Returns:
        float64 [m, 5], best first: at most `MAX_BOXES`, with scores of at least `MIN_SCORE`.
    """
    rest = np.asarray(boxes, np.float64).reshape(-1, 5)
    rest = rest[np.argsort(-rest[:, 4], kind="stable")]
    voted: list[np.ndarray] = []
    while len(rest) and len(voted) < MAX_BOXES and rest[0, 4] >= MIN_SCORE:
        together = overlaps(_xywh(rest[:1]), _xywh(rest))[0] >= VOTE_OVERLAP
        together[0] = True
        group = rest[together]
        # Averaged as shifts from the best box, which are exactly zero for a single box.
        shift = np.average(group[:, :4] - rest[0, :4], axis=0, weights=group[:, 4])
        voted.append(np.append(rest[0, :4] + shift, rest[0, 4]))
        rest = rest[~together]
    return np.stack(voted) if voted else np.zeros((0, 5))


class MultiScale:
    """Predictor that runs a detector on the images of ``EvalDataset`` at several scales.

    Image files are read again at their original size, whatever ``EvalReader`` resizes to; mean and
    standard deviation are those of its ``NormalizeImage``.

    Args:
        model: Detector of one of `ANY_SIZE_ARCHITECTURES`.
        cfg: ppdet's configuration.

    Raises:
        ConfigError: The architecture does not accept images of any size, or ``EvalReader`` does not
            normalize.
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
        """Detect on one batch; only ``im_id`` is used."""
        paths = [self._paths[int(image)] for image in np.asarray(batch["im_id"]).ravel()]
        found = [self.detect(Decode().apply({"im_file": path})["image"]) for path in paths]
        return [
            Detections(boxes[:, :4], boxes[:, 4], np.zeros(len(boxes), np.int64)) for boxes in found
        ]

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Boxes of one image, uint8 [height, width, 3] RGB, as returned by `vote`."""
        limit = max_scale(*image.shape[:2])
        return vote(np.concatenate([self._detect_view(image, view) for view in views(limit)]))

    def _detect_view(self, image: np.ndarray, view: View) -> np.ndarray:
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
    """Raise ConfigError if the metric is not WiderFace or the detector has a fixed image size."""
    if cfg.metric != "WiderFace":
        raise ConfigError(
            f"--multi_scale needs metric: WiderFace; the configuration has metric: {cfg.metric}"
        )
    if cfg.architecture not in ANY_SIZE_ARCHITECTURES:
        raise ConfigError(
            f"--multi_scale needs a detector that accepts images of any size "
            f"({', '.join(ANY_SIZE_ARCHITECTURES)}); "
            f"the configuration has architecture: {cfg.architecture}"
        )


def normalization(cfg: Any) -> NormalizeImage:
    """The ``NormalizeImage`` operator of ``EvalReader``; ConfigError if it has none."""
    reader = cfg["EvalReader"]
    steps = [*(reader.get("sample_transforms") or []), *(reader.get("batch_transforms") or [])]
    for step in steps:
        if "NormalizeImage" in step:
            return NormalizeImage(**step["NormalizeImage"])
    raise ConfigError("EvalReader has no NormalizeImage; --multi_scale needs its mean and std")


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]], axis=1)
