"""Draws one image with its exact ground truth.

Geometry and colours come from two independent random streams, so colours tell nothing about the
class, and boxes do not depend on how pixels are painted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

CLASS_NAMES = ("circle", "square", "triangle", "cross")

MAX_OBJECTS = 5
# Longer side of an object as a fraction of the shorter image side.
SIDE_RANGE = (0.15, 0.60)
MAX_TILT_DEGREES = 20.0
# Largest share of the smaller box that another box may cover; it also bounds the IoU.
MAX_COVERED = 0.2
PLACEMENT_TRIES = 25
SUBPIXELS = 4
# Smallest gap in luma (0-255) between the base colour of an object and what surrounds it.
LUMA_GAP = 55.0
LUMA_BGR = np.array([0.114, 0.587, 0.299], np.float32)

_LAYOUT_STREAM, _PAINT_STREAM = 0, 1


@dataclass(frozen=True)
class Scene:
    """A drawn image and its ground truth.

    Attributes:
        image: The image, uint8 BGR of shape (H, W, 3).
        background: The same image without its objects; equal to `image` wherever `owner` is 0.
        owner: uint8 of shape (H, W); 0 is background, k marks the pixels of object k - 1.
        boxes: int64 of shape (N, 4), pixels, x1 y1 x2 y2 with x2 and y2 one past the last pixel.
        labels: int64 of shape (N,), indices into `CLASS_NAMES`.
    """

    image: ByteArray
    background: ByteArray
    owner: ByteArray
    boxes: IntArray
    labels: IntArray


def draw_scene(seed: int, index: int, image_size_hw: tuple[int, int]) -> Scene:
    """Draw one image; equal arguments give equal images.

    Args:
        seed: Seed of a series of images, 0 or more.
        index: Number of the image in the series, 0 or more.
        image_size_hw: Height and width in pixels, 64 or more each.
    """
    key = [seed, index, *image_size_hw]
    layout_rng = np.random.default_rng([*key, _LAYOUT_STREAM])
    owner, boxes, labels, coverages = _lay_out(layout_rng, image_size_hw)
    rng = np.random.default_rng([*key, _PAINT_STREAM])
    background = _background(rng, image_size_hw)
    canvas = background.copy()
    softness = float(rng.uniform(0.3, 0.9))
    for box, coverage in zip(boxes.tolist(), coverages):
        _paint_object(rng, canvas, box, coverage, softness)
    # One noise field for both, so that they stay equal outside the objects.
    noise = rng.normal(0.0, rng.uniform(1.5, 6.0), canvas.shape).astype(np.float32)
    return Scene(_to_bytes(canvas + noise), _to_bytes(background + noise), owner, boxes, labels)


def box_overlaps(box: IntArray, boxes: IntArray) -> npt.NDArray[np.float64]:
    """Intersection of `box` (4,) with each of `boxes` (N, 4), as a share of the smaller box.

    Boxes are x1 y1 x2 y2 in pixels. The share, float64 (N,), is never smaller than the IoU.
    """
    top_left = np.maximum(box[:2], boxes[:, :2])
    bottom_right = np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.clip(bottom_right - top_left, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    smaller = np.minimum(np.prod(box[2:] - box[:2]), areas)
    return np.asarray(shared / smaller, np.float64)


def _lay_out(
    rng: np.random.Generator, hw: tuple[int, int]
) -> tuple[ByteArray, IntArray, IntArray, list[FloatArray]]:
    """Choose the objects: owners, boxes, labels, coverages; those without room are left out."""
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    low, high = np.log(SIDE_RANGE)
    # Large objects first: small ones find room in what is left.
    sides = np.sort(np.exp(rng.uniform(low, high, count)))[::-1] * min(hw)
    owner = np.zeros(hw, np.uint8)
    boxes = np.zeros((0, 4), np.int64)
    labels: list[int] = []
    coverages: list[FloatArray] = []
    for side in sides.tolist():
        label = int(rng.integers(len(CLASS_NAMES)))
        coverage = _coverage(rng, CLASS_NAMES[label], side)
        box = _find_place(rng, owner, boxes, coverage)
        if box is None:
            continue
        labels.append(label)
        coverages.append(coverage)
        boxes = np.vstack([boxes, box])
        x1, y1, x2, y2 = box.tolist()
        owner[y1:y2, x1:x2][coverage >= 0.5] = len(labels)
    return owner, boxes, np.array(labels, np.int64), coverages


def _find_place(
    rng: np.random.Generator, owner: ByteArray, boxes: IntArray, coverage: FloatArray
) -> IntArray | None:
    """Find a place where the object hides no other one and its box overlaps little."""
    height, width = coverage.shape
    for _ in range(PLACEMENT_TRIES):
        # One pixel stays free at each border: readers that clip to W - 1 leave the box as it is.
        y1 = int(rng.integers(1, owner.shape[0] - height))
        x1 = int(rng.integers(1, owner.shape[1] - width))
        box = np.array([x1, y1, x1 + width, y1 + height], np.int64)
        if (box_overlaps(box, boxes) >= MAX_COVERED).any():
            continue
        if not owner[y1 : y1 + height, x1 : x1 + width][coverage >= 0.5].any():
            return box
    return None


def _coverage(rng: np.random.Generator, name: str, side: float) -> FloatArray:
    """Rasterise one tilted outline, cropped to the pixels that are at least half covered."""
    points = _outline(rng, name)
    tilt = math.radians(rng.uniform(-MAX_TILT_DEGREES, MAX_TILT_DEGREES))
    cos, sin = math.cos(tilt), math.sin(tilt)
    points = points @ np.array([[cos, sin], [-sin, cos]])
    # The size is set after the tilt, so that it says the same for every class.
    points = (points - points.min(axis=0)) * (side / np.ptp(points, axis=0).max())
    points += rng.uniform(0.0, 1.0, 2)
    cells = math.ceil(side) + 2
    fine = np.zeros((cells * SUBPIXELS, cells * SUBPIXELS), np.uint8)
    cv2.fillPoly(fine, [np.round(points * SUBPIXELS).astype(np.int32)], 1)
    blocks = fine.reshape(cells, SUBPIXELS, cells, SUBPIXELS)
    coverage: FloatArray = blocks.mean(axis=(1, 3), dtype=np.float32)
    rows, cols = np.nonzero(coverage >= 0.5)
    return coverage[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]


def _outline(rng: np.random.Generator, name: str) -> npt.NDArray[np.float64]:
    """Corner points (K, 2) of an upright outline, centred at 0."""
    if name == "circle":
        turn = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
        return np.stack([np.cos(turn), np.sin(turn)], axis=1)
    if name == "square":
        return np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    if name == "triangle":
        turn = np.pi * (np.array([0.0, 2.0, 4.0]) / 3.0 - 0.5)
        return np.stack([np.cos(turn), np.sin(turn)], axis=1)
    arm = rng.uniform(0.28, 0.4)
    parts = [np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])]
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    for _ in range(3):
        parts.append(parts[-1] @ quarter_turn)
    return np.concatenate(parts)


def _background(rng: np.random.Generator, hw: tuple[int, int]) -> FloatArray:
    """Two close colours mixed by a pattern, under uneven light; float32 BGR (H, W, 3)."""
    first = rng.uniform(20.0, 235.0, 3).astype(np.float32)
    second = _near_colour(rng, first, rng.uniform(25.0, 65.0))
    mix = _pattern(rng, hw, min(hw))[..., None]
    light = (_smooth_noise(rng, hw)[..., None] - 0.5) * np.float32(rng.uniform(10.0, 30.0))
    canvas = first + (second - first) * mix + light
    return np.asarray(_blur(canvas, rng.uniform(0.0, 1.0)), np.float32).clip(0.0, 255.0)


def _paint_object(
    rng: np.random.Generator,
    canvas: FloatArray,
    box: list[int],
    coverage: FloatArray,
    softness: float,
) -> None:
    """Paint one object into `canvas`, only where it is at least half covered."""
    x1, y1, x2, y2 = box
    around = canvas[max(y1 - 4, 0) : y2 + 4, max(x1 - 4, 0) : x2 + 4]
    first = _contrasting_colour(rng, around)
    second = _near_colour(rng, first, rng.uniform(0.0, 30.0))
    size = (y2 - y1, x2 - x1)
    fill = (first + (second - first) * _pattern(rng, size, max(size))[..., None]).clip(0.0, 255.0)
    # The floor keeps the outermost pixels visible, so that the box is as tight as it looks.
    alpha = _blur(coverage, softness).clip(0.5, 1.0) * (coverage >= 0.5)
    region = canvas[y1:y2, x1:x2]
    region += (fill - region) * alpha[..., None]


def _contrasting_colour(rng: np.random.Generator, around: FloatArray) -> FloatArray:
    """A random colour at least `LUMA_GAP` brighter or darker than nearly all of `around`."""
    low, high = np.percentile(around @ LUMA_BGR, [5.0, 95.0])
    for _ in range(16):
        colour = rng.uniform(0.0, 255.0, 3).astype(np.float32)
        luma = float(colour @ LUMA_BGR)
        if luma > high + LUMA_GAP or luma < low - LUMA_GAP:
            return colour
    return np.full(3, 245.0 if low + high < 255.0 else 10.0, np.float32)


def _near_colour(rng: np.random.Generator, colour: FloatArray, distance: float) -> FloatArray:
    """A colour about `distance` (0-255 scale) away from `colour`, in a random direction."""
    step = rng.normal(0.0, 1.0, 3)
    near = colour + step * (distance / max(float(np.linalg.norm(step)), 1e-6))
    return near.clip(0.0, 255.0).astype(np.float32)


def _pattern(rng: np.random.Generator, hw: tuple[int, int], extent: int) -> FloatArray:
    """Noise, a gradient, stripes or a checker board; float32 (h, w) in [0, 1]."""
    kind = int(rng.integers(4))
    if kind == 0:
        return _smooth_noise(rng, hw)
    angle = rng.uniform(0.0, np.pi)
    rows, cols = np.mgrid[: hw[0], : hw[1]]
    along = cols * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - cols * math.sin(angle)
    if kind == 1:
        return np.asarray((along - along.min()) / max(np.ptp(along), 1.0), np.float32)
    period = max(extent * rng.uniform(0.08, 0.3), 4.0)
    wave = np.sin(2.0 * np.pi * along / period)
    if kind == 3:
        wave = wave * np.sin(2.0 * np.pi * across / period)
    # The steeper the flank, the harder the edge of a stripe or a field.
    return np.asarray(0.5 + 0.5 * np.tanh(wave * rng.uniform(1.0, 6.0)), np.float32)


def _smooth_noise(rng: np.random.Generator, hw: tuple[int, int]) -> FloatArray:
    """Random values on a coarse grid, interpolated; float32 (h, w) in [0, 1]."""
    grid = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9))), np.float32)
    smooth = cv2.resize(grid, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32).clip(0.0, 1.0)


def _blur(values: FloatArray, sigma: float) -> FloatArray:
    if sigma < 0.2:
        return values
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def _to_bytes(canvas: npt.NDArray[Any]) -> ByteArray:
    return np.asarray(np.rint(canvas.clip(0.0, 255.0)), np.uint8)
