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
from scipy.linalg import solve_triangular

from slim_det.compress.prune.reconstruct.symmetric import inverse, subtract_product

_DELAYED = 256
"""Columns of updates that are collected before they are applied as one matrix product."""

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

    The inverse A = H^-1 and the energies P = W W^T are kept for the rows of the units alone.
    Removing a unit c with A[c, c] = L L^T changes them to ``A - V V^T`` and
    ``P - V T^T - T V^T``, where ``V = A[:, c] L^-T``, ``S = P[:, c] L^-T`` and
    ``T = S - V L^-1 S[c] / 2``. Diagonal blocks are changed at once, everything else after several
    removals, in one matrix product.

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
        energies = weights @ weights.T
        energy = float(np.vdot(moment, energies))
        penalty = ridge * np.trace(moment) / len(moment)
        # Nothing is lost by removing what is zero, or is multiplied by zero.
        self._scale = 1.0 / energy if energy > 0.0 and penalty > 0.0 else 0.0
        if not self._scale:
            return
        flat = rows.reshape(-1)
        self._a = _taken(_inverse(moment, penalty), flat)
        self._a[flat < 0, flat < 0] = 1.0
        self._p = _taken(energies, flat)
        self._places = np.arange(self._units)  # of each unit among those that are left
        self._alive = np.ones(self._units, bool)
        self._waiting = 0
        self._diagonals()
        waiting = max(self._block, _DELAYED // self._block * self._block)
        self._v, self._t = (np.zeros((waiting, len(self._a))) for _ in range(2))

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
        v, t = self._v[: self._waiting], self._t[: self._waiting]
        rows = self._rows(unit)
        a = self._a[rows] - v[:, rows].T @ v
        p = self._p[rows] - v[:, rows].T @ t - t[:, rows].T @ v
        pivot = np.linalg.cholesky((a[:, rows] + a[:, rows].T) / 2)
        new_v = solve_triangular(pivot, a, lower=True, check_finite=False)
        new_s = solve_triangular(pivot, p, lower=True, check_finite=False)
        own = solve_triangular(pivot, new_s[:, rows].T, lower=True, check_finite=False)
        new_t = new_s - (own + own.T) / 4 @ new_v
        end = self._waiting + self._block
        self._v[self._waiting : end], self._t[self._waiting : end] = new_v, new_t
        self._waiting = end
        self._alive[unit] = False
        self._change_diagonals(new_v, new_t)
        if end + self._block > len(self._v):
            self._apply_changes()

    def _rows(self, unit: int) -> slice:
        start = int(self._places[unit]) * self._block
        return slice(start, start + self._block)

    def _diagonals(self) -> None:
        """Read the diagonal blocks of the units that have rows."""
        present = np.flatnonzero(self._places >= 0)
        index = self._places[present]
        blocks = (len(self._a) // self._block, self._block) * 2
        shape = (self._units, self._block, self._block)
        self._a_diagonal, self._p_diagonal = np.zeros(shape), np.zeros(shape)
        self._a_diagonal[present] = self._a.reshape(blocks)[index, :, index]
        self._p_diagonal[present] = self._p.reshape(blocks)[index, :, index]

    def _change_diagonals(self, v: np.ndarray, t: np.ndarray) -> None:
        kept = np.flatnonzero(self._places >= 0)
        v = v.reshape(self._block, -1, self._block).transpose(1, 2, 0)
        t = t.reshape(self._block, -1, self._block).transpose(1, 2, 0)
        self._a_diagonal[kept] -= v @ v.transpose(0, 2, 1)
        both = v @ t.transpose(0, 2, 1)
        self._p_diagonal[kept] -= both + both.transpose(0, 2, 1)

    def _apply_changes(self) -> None:
        """Apply the waiting changes to the rows of the units that are left."""
        v, t = self._v[: self._waiting], self._t[: self._waiting]
        subtract_product(self._a, v, v)
        subtract_product(self._p, v, t)
        subtract_product(self._p, t, v)
        left = np.flatnonzero(self._alive[self._places >= 0])
        if len(left) * self._block <= _CROWDED * len(self._a):
            self._a, self._p = self._square_of(left, self._a), self._square_of(left, self._p)
            self._places = np.where(self._alive, np.cumsum(self._alive) - 1, -1)
            self._v, self._t = (np.zeros((len(self._v), len(self._a))) for _ in range(2))
        self._waiting = 0
        self._diagonals()

    def _of(self, places: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The columns of some units."""
        blocks = columns.reshape(len(columns), -1, self._block)
        return np.take(blocks, places, axis=1).reshape(len(columns), -1)

    def _square_of(self, places: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """The rows and columns of some units."""
        rows = np.take(matrix.reshape(-1, self._block, len(matrix)), places, axis=0)
        return self._of(places, rows.reshape(-1, len(matrix)))


def _traces(matrices: np.ndarray) -> np.ndarray:
    return np.trace(matrices, axis1=1, axis2=2)


def _inverse(moment: np.ndarray, penalty: float) -> np.ndarray:
    system = np.array(moment, order="C")
    system[np.diag_indices_from(system)] += penalty
    return inverse(system)


def _taken(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """These rows and columns; zeros for -1."""
    if np.array_equal(rows, np.arange(len(matrix))):
        return matrix
    found = np.take(np.take(matrix, rows, axis=0), rows, axis=1)
    found[rows < 0], found[:, rows < 0] = 0.0, 0.0
    return found
