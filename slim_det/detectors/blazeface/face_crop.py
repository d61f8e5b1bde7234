"""Random crops for small faces; they replace ppdet's operator of the same name and keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from ppdet.core.workspace import serializable
from ppdet.data.transform.operators import BaseOperator

from slim_det.core.errors import ConfigError, DataError

# Fields of a sample with one row for each face.
FIELDS = ("gt_class", "gt_score", "difficult", "is_crowd")


@serializable
class CropWithDataAchorSampling(BaseOperator):
    """Crop a square in which some face has the size of an anchor, or a random part of the image.

    Data-anchor sampling of Tang et al. 2018 (PyramidBox, arXiv 1803.07737), section 3.3, and the
    random crops of Liu et al. 2016 (SSD). Where no crop is found, ppdet 2.6 leaves boxes divided by
    the image's size; here the sample stays as it is. Where the square is larger than the image,
    ppdet allocates all of it, gigabytes for a large face; here only pixels of the image are read.

    A row of a sampler is [crops, trials, min scale, max scale, min aspect, max aspect, min IoU,
    max IoU, min coverage, max coverage]: at most ``crops`` of ``trials`` random squares, each with
    a face whose IoU with it and whose covered share lie in the bounds (0: no bound). The scale is
    a share of the image's shorter side, not used in ``anchor_sampler``; both aspects are 1.

    Args:
        batch_sampler: Rows for random shares of the image; their crops are not resized.
        anchor_sampler: Rows for data-anchor sampling; its crops are resized to ``target_size``,
            black where they are outside of the image.
        target_size: Side of the network's input, in pixels.
        das_anchor_scales: Sides of faces to aim at, in pixels, increasing.
        sampling_prob: Probability of ``batch_sampler``.
        min_size: Faces with an area of less than this squared in the network's input are left out.
        avoid_no_bbox: Whether a crop without a face is refused.

    Raises:
        ConfigError: A row has not ten numbers, or another aspect than 1.
    """

    def __init__(
        self,
        batch_sampler: Sequence[Sequence[float]],
        anchor_sampler: Sequence[Sequence[float]] | None = None,
        target_size: int = 640,
        das_anchor_scales: Sequence[float] = (16, 32, 64, 128),
        sampling_prob: float = 0.5,
        min_size: float = 8.0,
        avoid_no_bbox: bool = True,
    ) -> None:
        super().__init__()
        for row in [*batch_sampler, *(anchor_sampler or [])]:
            if len(row) != 10 or row[4] != 1 or row[5] != 1:
                raise ConfigError(
                    f"CropWithDataAchorSampling: {list(row)} is not a row of a sampler; expected "
                    "ten numbers, the fifth and the sixth (aspect ratios) 1"
                )
        self.batch_sampler = batch_sampler
        self.anchor_sampler = anchor_sampler or []
        self.target_size = target_size
        self.scales = np.sort(np.asarray(das_anchor_scales, "float64"))
        self.sampling_prob = sampling_prob
        self.min_size = min_size
        self.avoid_no_bbox = avoid_no_bbox

    def apply(self, sample: dict[str, Any], context: Any = None) -> dict[str, Any]:
        """Crop the image [H, W, 3] and its boxes, xyxy in pixels [N, 4].

        Raises:
            DataError: The sample has landmarks, which are not moved.
        """
        if "gt_keypoint" in sample:
            raise DataError("faces with landmarks cannot be cropped; expected with_lmk: false")
        boxes = np.asarray(sample["gt_bbox"], "float64").reshape(-1, 4)
        size_hw = sample["image"].shape[:2]
        by_anchor = np.random.uniform() > self.sampling_prob
        rows = self.anchor_sampler if by_anchor else self.batch_sampler
        crops: list[np.ndarray] = []
        for row in rows:
            draw = self._anchor_crops if by_anchor else self._scale_crops
            candidates = draw(row, boxes, size_hw)
            crops += [*candidates[_with_a_face(row, candidates, boxes)][: int(row[0])]]
        for index in np.random.permutation(len(crops)):
            kept, moved = self._boxes_inside(crops[index], boxes)
            if kept.any() or not self.avoid_no_bbox:
                side = self.target_size if by_anchor else 0
                return _cropped(sample, crops[index], kept, moved, side)
        return sample

    def _scale_crops(
        self, row: Sequence[float], boxes: np.ndarray, size_hw: tuple[int, int]
    ) -> np.ndarray:
        """Squares inside the image, xyxy in whole pixels [trials, 4]."""
        height, width = size_hw
        trials = int(row[1])
        shares = np.random.uniform(row[2], row[3], trials)
        sides = np.maximum(1, (shares * min(size_hw)).astype("int64"))
        left = np.floor(np.random.uniform(0, width - sides + 1)).astype("int64")
        top = np.floor(np.random.uniform(0, height - sides + 1)).astype("int64")
        return np.stack([left, top, left + sides, top + sides], axis=1)

    def _anchor_crops(
        self, row: Sequence[float], boxes: np.ndarray, size_hw: tuple[int, int]
    ) -> np.ndarray:
        """Squares that give random faces the size of an anchor; they may leave the image."""
        extents = boxes[:, 2:] - boxes[:, :2]
        faces = np.flatnonzero((extents > 0).all(axis=1))
        crops = np.zeros((int(row[1]) if len(faces) else 0, 4), "int64")
        for crop in crops:
            face = np.random.choice(faces)
            wanted = self._wanted_width(float(np.sqrt(extents[face].prod())))
            side = max(1, round(extents[face, 0] * self.target_size / wanted))
            if side < max(size_hw):
                ends = boxes[face, :2], boxes[face, 2:] - side
            else:
                ends = np.zeros(2), np.array(size_hw[::-1]) - side
            crop[:2] = np.floor(np.random.uniform(np.minimum(*ends), np.maximum(*ends)))
            crop[2:] = crop[:2] + side
        return crops

    def _wanted_width(self, side: float) -> float:
        """A random width near an anchor for a face with this side, at most twice that side."""
        largest = min(int((self.scales < side).sum()), max(0, len(self.scales) - 2))
        chosen = np.random.randint(0, largest + 1)
        low, high = self.scales[chosen] / 2, self.scales[chosen] * 2
        if chosen == largest:
            high = min(high, 2 * side)
        return float(np.random.uniform(min(low, high), max(low, high)))

    def _boxes_inside(self, crop: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Select the faces with their centre in a crop that are large enough, and move all boxes.

        Returns:
            bool [N], and xyxy as shares of the crop's side [N, 4].
        """
        side = crop[2] - crop[0]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= crop[:2]) & (centres <= crop[2:])).all(axis=1)
        moved = np.clip((boxes - np.tile(crop[:2], 2)) / side, 0, 1)
        areas = (moved[:, 2:] - moved[:, :2]).prod(axis=1) * self.target_size**2
        return inside & (areas > 0) & (areas >= self.min_size**2), moved


def _with_a_face(row: Sequence[float], crops: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which crops [T, 4] satisfy a row's bounds with at least one face; bool [T]."""
    bounds = np.asarray(row[6:], "float64")
    if not bounds.any():
        return np.ones(len(crops), bool)
    low = np.maximum(crops[:, None, :2], boxes[None, :, :2])
    high = np.minimum(crops[:, None, 2:], boxes[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[None]
    squares = (crops[:, 2] - crops[:, 0])[:, None] ** 2
    good = areas > 0
    iou = common / (areas + squares - common)
    covered = common / np.where(good, areas, 1)
    for (low_bound, high_bound), value in zip(bounds.reshape(2, 2), (iou, covered)):
        good = good & (value >= low_bound) & (value <= (high_bound or np.inf))
    found: np.ndarray = good.any(axis=1)
    return found


def _cropped(
    sample: dict[str, Any], crop: np.ndarray, kept: np.ndarray, moved: np.ndarray, side: int
) -> dict[str, Any]:
    """The sample with only a crop of it, at ``side`` pixels (0: as it is)."""
    image = sample["image"]
    sample["image"] = _patch(image, crop, side) if side else _visible(image, crop)
    height, width = sample["image"].shape[:2]
    scale = np.array([width, height, width, height])
    sample["gt_bbox"] = (moved[kept] * scale).astype("float32")
    for key in FIELDS:
        if key in sample:
            sample[key] = np.asarray(sample[key])[kept]
    return sample


def _patch(image: np.ndarray, crop: np.ndarray, side: int) -> np.ndarray:
    """A crop at ``side`` pixels, black where it leaves the image."""
    height, width = image.shape[:2]
    scale = side / float(crop[2] - crop[0])
    patch = np.zeros((side, side, 3), image.dtype)
    limits = np.array([width, height, width, height])
    inside = np.clip(crop, 0, limits)
    x1, y1, x2, y2 = np.rint((inside - np.tile(crop[:2], 2)) * scale).astype("int64")
    if x2 > x1 and y2 > y1:
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        part = np.ascontiguousarray(_visible(image, inside))
        patch[y1:y2, x1:x2] = cv2.resize(part, (int(x2 - x1), int(y2 - y1)), interpolation=method)
    return patch


def _visible(image: np.ndarray, crop: np.ndarray) -> np.ndarray:
    return image[crop[1] : crop[3], crop[0] : crop[2]]
