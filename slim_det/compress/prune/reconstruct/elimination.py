"""Block-wise elimination: which channels the other channels can replace, found from data.

For each layer that reads a channel, H is the sum of x x^T over its input patches x. If a block of
inputs is left out and the weights of all others are solved for again, the squared error of the
layer's output grows by ``tr(W[c]^T (H^-1[c, c])^-1 W[c])``: the saliency of the optimal brain
surgeon (Hassibi and Stork 1993) for a block of weights. The channel with the smallest sum over all
readers is removed, and H^-1 and W are those of the remaining channels. So one run gives
the smallest error of a greedy choice for every number of removed channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.reconstruct.in_place import inverse, subtract_product, with_ridge

ELIMINATION = "elimination"
"""Name of the criterion."""

_DELAYED = 256
"""Columns of updates that are collected before they are applied as one matrix product."""

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
    for _ in range(count):
        last = (left & (left.sum(axis=1, keepdims=True) == 1)).any(axis=0)
        free = np.flatnonzero(alive & ~last)
        if not len(free):
            break
        costs = sum((reader.costs(free) for reader in readers), np.zeros(len(free)))
        place = int(np.argmin(costs))
        unit = int(free[place])
        total += float(costs[place])
        for reader in readers:
            reader.remove(unit)
        alive[unit] = False
        left[:, unit] = False
        order.append(unit)
        errors.append(total)
    return Elimination(np.array(order, np.int64), np.array(errors, np.float64))


class Reader:
    """One layer, or group of a grouped one, that reads the units.

    The inverse A = H^-1 and the weights W are kept for the rows of the units alone. Removing a unit
    c with A[c, c] = L L^T changes them to ``A - V V^T`` and ``W - V Z``, where ``V = A[:, c] L^-T``
    and ``Z = L^-1 W[c]``. The costs need diagonal blocks of A and of W W^T; these are changed at
    once, the rest after several removals, in one matrix product each.

    Large matrices are kept in float32 once H is inverted in float64: products with them only choose
    among channels, and decide the same.

    Args:
        moment: H, float64 [D, D].
        weights: W, float64 [D, M].
        rows: Rows of each unit, int64 [U, B]; -1 fills up units that have fewer.
        ridge: Added to the diagonal of H, relative to its mean.
    """

    def __init__(
        self, moment: np.ndarray, weights: np.ndarray, rows: np.ndarray, ridge: float
    ) -> None:
        self._units, self._block = rows.shape
        energy = float(np.vdot(weights, moment @ weights))
        penalty = ridge * np.trace(moment) / len(moment)
        # Nothing is lost by removing what is zero, or is multiplied by zero.
        self._scale = 1.0 / energy if energy > 0.0 and penalty > 0.0 else 0.0
        if not self._scale:
            return
        flat = rows.reshape(-1)
        kind = np.float32 if len(flat) >= _LARGE else np.float64
        self._a: np.ndarray = inverse(with_ridge(moment, penalty)).astype(kind, copy=False)
        self._w: np.ndarray = weights.astype(kind, order="C")
        if not np.array_equal(flat, np.arange(len(moment))):
            self._a = np.take(np.take(self._a, flat, axis=0), flat, axis=1)
            self._w = np.take(self._w, flat, axis=0)
            self._a[flat < 0], self._a[:, flat < 0], self._w[flat < 0] = 0.0, 0.0, 0.0
            self._a[flat < 0, flat < 0] = 1.0
        self._places = np.arange(self._units)  # of each unit among those that have rows
        self._alive = np.ones(self._units, bool)
        self._a_diagonal, self._p_diagonal = self._diagonals()
        self._waiting = 0
        self._make_room()

    def costs(self, units: np.ndarray) -> np.ndarray:
        """Growth of the relative squared error if one of these units is removed, [len(units)]."""
        if not self._scale:
            return np.zeros(len(units))
        a, p = self._a_diagonal[units], self._p_diagonal[units]
        found = p[:, 0, 0] / a[:, 0, 0] if self._block == 1 else _traces(np.linalg.solve(a, p))
        return self._scale * np.maximum(found, 0.0)

    def remove(self, unit: int) -> None:
        """Remove a unit."""
        if not self._scale:
            return
        v, z = self._v[: self._waiting], self._z[: self._waiting]
        start = int(self._places[unit]) * self._block
        rows = slice(start, start + self._block)
        a = self._a[rows] - v[:, rows].T @ v
        own = self._w[rows] - v[:, rows].T @ z
        pivot = np.linalg.cholesky(((a[:, rows] + a[:, rows].T) / 2).astype(np.float64))
        invert = np.linalg.inv(pivot).astype(self._a.dtype)
        new_v, new_z = invert @ a, invert @ own
        s = new_z @ self._w.T - (new_z @ z.T) @ v
        t = s - (new_z @ new_z.T) @ new_v / 2
        self._change_diagonals(new_v, t)
        end = self._waiting + self._block
        self._v[self._waiting : end], self._z[self._waiting : end] = new_v, new_z
        self._waiting = end
        self._alive[unit] = False
        if end + self._block > len(self._v):
            self._apply_changes()

    def _diagonals(self) -> tuple[np.ndarray, np.ndarray]:
        """Diagonal blocks of A and of W W^T, float64 [U, B, B]."""
        index = np.arange(self._units)
        blocks = self._a.reshape(self._units, self._block, self._units, self._block)
        w = self._w.reshape(self._units, self._block, -1)
        energies = w @ w.transpose(0, 2, 1)
        return blocks[index, :, index].astype(np.float64), energies.astype(np.float64)

    def _change_diagonals(self, v: np.ndarray, t: np.ndarray) -> None:
        """Subtract the blocks of ``V V^T`` and of ``V T^T + T V^T``; both arrays are [B, D]."""
        kept = np.flatnonzero(self._places >= 0)
        v = v.reshape(self._block, -1, self._block).transpose(1, 2, 0)
        t = t.reshape(self._block, -1, self._block).transpose(1, 2, 0)
        self._a_diagonal[kept] -= v @ v.transpose(0, 2, 1)
        both = v @ t.transpose(0, 2, 1)
        self._p_diagonal[kept] -= both + both.transpose(0, 2, 1)

    def _apply_changes(self) -> None:
        """Apply the waiting changes, and drop rows of removed units if they are many."""
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
        count = max(self._block, _DELAYED // self._block * self._block)
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


def _traces(matrices: np.ndarray) -> np.ndarray:
    return np.trace(matrices, axis1=1, axis2=2)
