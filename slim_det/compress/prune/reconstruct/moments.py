"""Sums over positions that a least-squares problem needs, collected patch by patch.

The memory is that of the sums, however many images are added. Patches come as float32; they are
multiplied and summed in float64, since the solution of an ill-conditioned problem would not survive
sums in float32.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np

from slim_det.compress.prune.reconstruct.in_place import add_squares, mirror, subtract_product

ROWS = 1024
"""Patches that are multiplied at once: fewer make the product slow, more cost memory."""

_LARGE = 64
"""From this number of rows on, matrices are summed in place, one after the other."""


@dataclass(frozen=True)
class Moments:
    """Second moments of inputs x [G, P, D] and targets y [G, P, M], summed over P positions.

    Attributes:
        count: Number of positions.
        x: Sum of x, [G, D].
        y: Sum of y, [G, M].
        xx: Sum of x x^T, [G, D, D].
        xy: Sum of x y^T, [G, D, M].
        yy: Sum of squares of y, [G, M].
    """

    count: int
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of positions."""
        return Moments(
            self.count + other.count,
            self.x + other.x,
            self.y + other.y,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
        )

    def squared_deviation(self) -> float:
        """Sum of squared differences of the targets from their means."""
        if not self.count:
            return 0.0
        return float(np.maximum(self.yy - self.y**2 / self.count, 0.0).sum())

    def centred(self) -> Moments:
        """The moments after both means are subtracted."""
        if not self.count:
            return self
        mean_y = self.y / self.count
        xx = np.array(self.xx, order="C")
        _centre(xx, self.x, self.count)
        return Moments(
            self.count,
            np.zeros_like(self.x),
            np.zeros_like(self.y),
            xx,
            self.xy - self.x[:, :, None] * mean_y[:, None, :],
            np.maximum(self.yy - self.y * mean_y, 0.0),
        )


@dataclass(frozen=True)
class Inputs:
    """What an elimination knows of the inputs x [G, P, D] of a layer.

    Attributes:
        count: Number of positions.
        x: Sum of x, [G, D].
        squares: Sum of x x^T, of x less its mean if the layer can take an intercept, [G, D, D].
    """

    count: int
    x: np.ndarray
    squares: np.ndarray


def inputs_of(moments: Moments, centre: bool) -> Inputs:
    """The inputs of some moments, whose x x^T is changed in place and must not be used again."""
    if centre:
        _centre(moments.xx, moments.x, moments.count)
    return Inputs(moments.count, moments.x, moments.xx)


def _centre(xx: np.ndarray, x: np.ndarray, count: int) -> None:
    for total, own in zip(xx, x):
        subtract_product(total, own[None], own[None] / count)


class MomentSums:
    """Collects `Moments` from one image after the other.

    Args:
        squares: Whether x x^T is summed; without it, it stays zero with no rows.
    """

    def __init__(self, squares: bool = True) -> None:
        self._squares = squares
        self._sums: Moments | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._rows = self._count = 0
        self._given_out = False

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add patches and their targets, [G, P, D] and [G, P, M]."""
        self._waiting.append((x, y))
        self._rows += x.shape[1]
        if self._rows >= ROWS:
            self._flush()

    def total(self) -> Moments:
        """The sums of what was added, which is at least one patch."""
        found = self.result()
        if found is None:
            raise AssertionError("nothing was added")
        return found

    def result(self) -> Moments | None:
        """The sums so far; None before anything was added."""
        self._flush()
        if self._sums is None:
            return None
        for total in self._sums.xx if self._sums.xx.shape[1] >= _LARGE else ():
            mirror(total)
        self._given_out = True
        return replace(self._sums, count=self._count)

    def _flush(self) -> None:
        if not self._waiting:
            return
        x, y = (np.concatenate(part, axis=1, dtype=np.float64) for part in zip(*self._waiting))
        self._waiting, self._rows = [], 0
        if self._sums is None:
            self._sums = _nothing(x, y, self._squares)
        elif self._given_out:  # a result keeps its numbers
            self._sums = deepcopy(self._sums)
        self._given_out = False
        sums = self._sums
        sums.x[:] += x.sum(axis=1)
        sums.y[:] += y.sum(axis=1)
        sums.yy[:] += np.square(y).sum(axis=1)
        sums.xy[:] += x.transpose(0, 2, 1) @ y
        if self._squares and x.shape[2] < _LARGE:
            sums.xx[:] += x.transpose(0, 2, 1) @ x
        elif self._squares:
            for total, one in zip(sums.xx, x):
                add_squares(total, one)
        self._count += x.shape[1]


def _nothing(x: np.ndarray, y: np.ndarray, squares: bool) -> Moments:
    groups, _, rows = x.shape
    columns, side = y.shape[2], rows if squares else 0
    return Moments(
        0,
        np.zeros((groups, rows)),
        np.zeros((groups, columns)),
        np.zeros((groups, side, side)),
        np.zeros((groups, rows, columns)),
        np.zeros((groups, columns)),
    )
