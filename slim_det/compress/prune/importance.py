"""Importance: a score per channel; the channels with the lowest scores are removed.

Each criterion takes the weight of a layer as float64 [C, K], one row per output channel, and the
scale of the batch norm after it, float64 [C].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Criterion = Callable[[np.ndarray, "np.ndarray | None", np.random.Generator], np.ndarray]


def l1_norm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Sum of absolute weights (Li et al. 2016, arXiv 1608.08710), float64 [C]."""
    return np.abs(filters).sum(axis=1)


def l2_norm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Euclidean norm of the weights, float64 [C]."""
    return np.sqrt(np.square(filters).sum(axis=1))


def fpgm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Sum of distances to all filters (He et al. 2019, arXiv 1811.00250), float64 [C].

    Filters near the geometric median are the ones that the others can replace.
    """
    products = filters @ filters.T
    squared = np.diagonal(products)
    distances = squared[:, None] + squared[None, :] - 2.0 * products
    return np.sqrt(np.maximum(distances, 0.0)).sum(axis=1)


def bn_scale(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Absolute batch norm scale (Liu et al. 2017, arXiv 1708.06519), float64 [C].

    Raises:
        ValueError: No batch norm follows the layer (``scale`` is None).
    """
    if scale is None:
        raise ValueError("bn_scale needs a batch norm directly behind the layer")
    return np.abs(scale)


def random(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise, the baseline of every other criterion, float64 [C]."""
    return rng.random(len(filters))


CRITERIA: dict[str, Criterion] = {
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "random": random,
}


def smallest(scores: np.ndarray, count: int, layers: np.ndarray | None = None) -> np.ndarray:
    """Indices of the smallest scores, ascending; of equal ones the lower index is taken first.

    Args:
        scores: One number per channel, [C].
        count: How many to choose.
        layers: Channels of each layer, bool [L, C]; by default one layer has them all. Each keeps
            at least one, so fewer than ``count`` may be chosen.
    """
    left = np.ones((1, len(scores)), bool) if layers is None else layers.copy()
    chosen: list[int] = []
    for index in np.argsort(scores, kind="stable").tolist():
        last = left[:, index] & (left.sum(axis=1) == 1)
        if len(chosen) < count and not last.any():
            left[:, index] = False
            chosen.append(index)
    return np.sort(np.array(chosen, dtype=np.int64))
