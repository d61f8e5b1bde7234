"""Block-wise elimination: which channels the other channels can replace, found from data.

For each layer that reads a channel, H is the sum of x x^T over its input patches x. If a block of
inputs is left out and the weights of all others are solved for again, the squared error of the
layer's output grows by ``tr(W[c]^T (H^-1[c, c])^-1 W[c])``: the saliency of the optimal brain
surgeon (Hassibi and Stork 1993) for a block of weights. The channel with the smallest sum over all
readers is removed, and H^-1 and W are those of the remaining channels. So one run gives
the error of a nearly greedy choice for every number of removed channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.reconstruct.in_place import (
    inverse,
    inverse_root,
    subtract_product,
    with_ridge,
)

ELIMINATION = "elimination"
"""Name of the criterion."""

_PERIOD = 32
"""Most removals between two calculations of the costs of all units."""

_AT_ONCE = 4
"""Cheapest units whose costs are brought up to date together."""

_LARGE = 2048
"""From this number of rows on, matrices are kept in float32."""

_CROWDED = 0.75
"""Rows of removed units are dropped when at most this share of all rows is left."""


@dataclass(frozen=True)
class Elimination:
    """The result of an elimination.

    Attributes:
        order: Units in the order of their removal, int64 [T].
        errors: Relative squared error of the readers' outputs, summed over readers, after each
            removal, float64 [T].
    """

    order: np.ndarray
    errors: np.ndarray


def eliminate(readers: list[Reader], units: int, count: int, holders: np.ndarray) -> Elimination:
    """Remove the cheapest unit, again and again.

    Args:
        readers: The layers that read the units.
        units: Number of units, U.
        count: How many to remove.
        holders: Which units each tensor has, bool [L, U]; each keeps at least one.

    Returns:
        The order, shorter than ``count`` if every holder has one unit left.
    """
    left = holders.copy()
    alive = np.ones(units, bool)
    order, errors, total = [], [], 0.0
    costs, exact = np.zeros(units), np.zeros(units, bool)
    since = _PERIOD
    for _ in range(count):
        last = (left & (left.sum(axis=1, keepdims=True) == 1)).any(axis=0)
        free = np.flatnonzero(alive & ~last)
        if not len(free):
            break
        if since >= min(_PERIOD, int(alive.sum()) // 16):
            since = 0
            rest = np.flatnonzero(alive)
            for reader in readers:
                reader.settle()
            costs[rest], exact[rest] = _costs(readers, rest), True
        unit = _cheapest(readers, free, costs, exact)
        total += float(costs[unit])
        for reader in readers:
            reader.remove(unit)
        alive[unit], exact[:] = False, False
        left[:, unit] = False
        order.append(unit)
        errors.append(total)
        since += 1
    return Elimination(np.array(order, np.int64), np.array(errors, np.float64))


def _costs(readers: list[Reader], units: np.ndarray) -> np.ndarray:
    return sum((reader.costs(units) for reader in readers), np.zeros(len(units)))


def _cheapest(readers: list[Reader], free: np.ndarray, costs: np.ndarray, exact: np.ndarray) -> int:
    """The cheapest unit, where costs that are not exact count as lower bounds and are mended.

    What the other units can replace hardly ever becomes cheaper when there are fewer of them.
    """
    while True:
        candidates = free[np.argsort(costs[free], kind="stable")[:_AT_ONCE]]
        if exact[candidates[0]]:
            return int(candidates[0])
        stale = candidates[~exact[candidates]]
        costs[stale], exact[stale] = _costs(readers, stale), True


class Reader:
    """One layer, or group of a grouped one, that reads the units.

    The inverse A = H^-1 and the weights W are kept for the rows of the units alone. Removing a unit
    c with A[c, c] = L L^T changes them to ``A - V V^T`` and ``W - V Z``, where ``V = A[:, c] L^-T``
    and ``Z = L^-1 W[c]``. Changes wait until `settle` applies them as one matrix product each; rows
    that are needed earlier are computed from them.

    Large matrices are kept in float32 once H is inverted in float64. With a ridge of 1e-4, sums of
    costs differ by 3e-5 of themselves then; with 1e-6, by 1 %.

    Args:
        moment: H, float64 [D, D].
        weights: W, float64 [D, M].
        rows: Rows of each unit, int64 [U, B]; -1 fills up units that have fewer.
        ridge: Added to the diagonal of H, relative to its mean.
    """

    def __init__(
        self, moment: np.ndarray, weights: np.ndarray, rows: np.ndarray, ridge: float
    ) -> None:
        units, self._block = rows.shape
        flat = rows.reshape(-1)
        kind = np.float32 if len(flat) >= _LARGE else np.float64
        products = moment.astype(kind, copy=False) @ weights.astype(kind, copy=False)
        energy = float(np.vdot(weights, products))
        penalty = ridge * np.trace(moment) / len(moment)
        # Nothing is lost by removing what is zero, or is multiplied by zero.
        self._scale = 1.0 / energy if energy > 0.0 and penalty > 0.0 else 0.0
        if not self._scale:
            return
        self._a: np.ndarray = inverse(with_ridge(moment, penalty)).astype(kind, copy=False)
        self._w: np.ndarray = weights.astype(kind, order="C")
        if not np.array_equal(flat, np.arange(len(moment))):
            self._a = np.take(np.take(self._a, flat, axis=0), flat, axis=1)
            self._w = np.take(self._w, flat, axis=0)
            self._a[flat < 0], self._a[:, flat < 0], self._w[flat < 0] = 0.0, 0.0, 0.0
            self._a[flat < 0, flat < 0] = 1.0
        self._places = np.arange(units)  # of each unit among those that have rows
        self._alive = np.ones(units, bool)
        self._waiting = 0
        self._make_room()

    def costs(self, units: np.ndarray) -> np.ndarray:
        """Growth of the relative squared error if one of these units is removed, [len(units)]."""
        if not self._scale:
            return np.zeros(len(units))
        places = self._places[units]
        rows = (places[:, None] * self._block + np.arange(self._block)).ravel()
        blocks = self._a.reshape(-1, self._block, len(self._a) // self._block, self._block)
        a = blocks[places, :, places].astype(np.float64)
        own = self._w[rows]
        v, z = self._v[: self._waiting, rows], self._z[: self._waiting]
        own -= v.T @ z
        parts = v.T.reshape(len(units), self._block, -1)
        a -= parts @ parts.transpose(0, 2, 1)
        own = own.reshape(len(units), self._block, -1)
        p = (own @ own.transpose(0, 2, 1)).astype(np.float64)
        return self._scale * np.maximum(_traces(a, p), 0.0)

    def remove(self, unit: int) -> None:
        """Remove a unit."""
        if not self._scale:
            return
        start = int(self._places[unit]) * self._block
        rows = slice(start, start + self._block)
        v, z = self._v[: self._waiting], self._z[: self._waiting]
        a = self._a[rows] - v[:, rows].T @ v
        own = self._w[rows] - v[:, rows].T @ z
        invert = inverse_root((a[:, rows] + a[:, rows].T) / 2).astype(self._a.dtype)
        end = self._waiting + self._block
        self._v[self._waiting : end], self._z[self._waiting : end] = invert @ a, invert @ own
        self._waiting = end
        self._alive[unit] = False
        if end == len(self._v):
            self.settle()

    def settle(self) -> None:
        """Apply the waiting changes, and drop rows of removed units if they are many."""
        if not self._scale or not self._waiting:
            return
        v, z = self._v[: self._waiting], self._z[: self._waiting]
        subtract_product(self._a, v, v)
        subtract_product(self._w, v, z)
        self._waiting = 0
        left = np.flatnonzero(self._alive[self._places >= 0])
        if len(left) * self._block > _CROWDED * len(self._a):
            return
        self._a = self._of(left, self._rows_of(left, self._a))
        self._w = self._rows_of(left, self._w)
        self._places = np.where(self._alive, np.cumsum(self._alive) - 1, -1)
        self._make_room()

    def _make_room(self) -> None:
        count = _PERIOD * self._block
        self._v: np.ndarray = np.zeros((count, len(self._a)), self._a.dtype)
        self._z: np.ndarray = np.zeros((count, self._w.shape[1]), self._a.dtype)

    def _of(self, places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """The columns of some units."""
        blocks = matrix.reshape(len(matrix), -1, self._block)
        return np.take(blocks, places, axis=1).reshape(len(matrix), -1)

    def _rows_of(self, places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """The rows of some units."""
        blocks = matrix.reshape(-1, self._block, matrix.shape[1])
        return np.take(blocks, places, axis=0).reshape(-1, matrix.shape[1])


def _traces(a: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Traces of ``A^-1 P`` for symmetric matrices [U, B, B].

    One row is eliminated after the other, in all matrices at once: for small ones this is an order
    of magnitude faster than a solver that is called for each.
    """
    found = np.zeros(len(a))
    while a.shape[1]:
        pivot, corner = a[:, :1, :1], p[:, :1, :1]
        column, own = a[:, 1:, :1] / pivot, p[:, 1:, :1]
        found += (corner / pivot)[:, 0, 0]
        both = column * own.transpose(0, 2, 1)
        squares = column * column.transpose(0, 2, 1)
        p = p[:, 1:, 1:] - both - both.transpose(0, 2, 1) + corner * squares
        a = a[:, 1:, 1:] - pivot * squares
    return found
