"""The losses once more, as the papers print them: float64, plain probabilities, loops.

And the tensors to try them on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle

from slim_det.compress.distill.losses import LOSSES, Options

CLASSES = 2
HEAT = 2.0
ANCHORS = 3
YOLO_SHAPE = (2, ANCHORS * (5 + CLASSES), 2, 3)
OPTIONS = Options(num_classes=CLASSES, temperature=HEAT)
OF_ONE_TENSOR = [
    name for name, loss in LOSSES.items() if loss.reads == "output" and not loss.make_context
]


def tensor(array: Any, trains: bool = False) -> paddle.Tensor:
    return paddle.to_tensor(np.asarray(array, np.float32), stop_gradient=not trains)


def yolo(**logits: float) -> np.ndarray:
    """One anchor, one class, one cell: [1, 6, 1, 1]; what is not named is 0."""
    places = ["x", "y", "w", "h", "obj", "cls"]
    return np.array([logits.get(place, 0.0) for place in places]).reshape(1, 6, 1, 1)


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 2.0, shape)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def cross_entropy(logits: np.ndarray, p: np.ndarray) -> np.ndarray:
    return -p * np.log(sigmoid(logits)) - (1.0 - p) * np.log(1.0 - sigmoid(logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


def l2_by_hand(s: np.ndarray, t: np.ndarray) -> float:
    return float(((s - t) ** 2).sum() / s.size)


def split_by_hand(s: np.ndarray, t: np.ndarray) -> float:
    boxes, classes, objects = [], [], []
    for first in range(0, s.shape[1], 5 + CLASSES):
        seen = sigmoid(t[:, first + 4])
        box = sum(cross_entropy(s[:, first + i], sigmoid(t[:, first + i])) for i in (0, 1))
        box = box + sum(abs(s[:, first + i] - t[:, first + i]) for i in (2, 3))
        boxes.append(box * seen)
        for i in range(first + 5, first + 5 + CLASSES):
            classes.append(cross_entropy(s[:, i], sigmoid(t[:, i])) * seen)
        objects.append(cross_entropy(s[:, first + 4], np.where(seen > 0.5, 1.0, 0.0)))
    return float(np.mean(boxes) + np.mean(classes) + np.mean(objects))


def dml_by_hand(s: np.ndarray, t: np.ndarray) -> float:
    divergences = []
    for channel in range(s.shape[1]):
        if channel % (5 + CLASSES) not in (2, 3):
            p, q = sigmoid(t[:, channel]), sigmoid(s[:, channel])
            divergences.append(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    return float(np.mean(divergences))


def soft_label_by_hand(s: np.ndarray, t: np.ndarray) -> float:
    terms = []
    for image, row, column in np.ndindex(s.shape[0], *s.shape[2:]):
        p = softmax(t[image, :, row, column] / HEAT)
        q = softmax(s[image, :, row, column] / HEAT)
        terms.append(-(p * np.log(q)).sum())
    return HEAT**2 * float(np.mean(terms))


def cwd_by_hand(s: np.ndarray, t: np.ndarray) -> float:
    terms = []
    for image, channel in np.ndindex(*s.shape[:2]):
        p, q = softmax(t[image, channel] / HEAT), softmax(s[image, channel] / HEAT)
        terms.append((p * np.log(p / q)).sum())
    return HEAT**2 * float(np.sum(terms)) / (s.shape[0] * s.shape[1])


BY_HAND: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "l2": l2_by_hand,
    "split": split_by_hand,
    "soft_label": soft_label_by_hand,
    "feature_l2": l2_by_hand,
    "cwd": cwd_by_hand,
    "dml": dml_by_hand,
}


def fsp_by_hand(s: list[np.ndarray], t: list[np.ndarray]) -> float:
    flows = [np.einsum("nmhw,nkhw->nmk", a, b) / a[0, 0].size for a, b in (s, t)]
    return float(np.mean((flows[0] - flows[1]) ** 2))


def slope(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Gradient by central differences, float64."""
    result = np.zeros(at.shape)
    for index in np.ndindex(*at.shape):
        step = np.zeros(at.shape)
        step[index] = 1e-5
        result[index] = (function(at + step) - function(at - step)) / 2e-5
    return result
