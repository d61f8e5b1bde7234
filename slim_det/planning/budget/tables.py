"""Tables whose every cell holds a front of (cost, penalty): joined, projected and thinned.

The two operations of variable elimination (Dechter, "Bucket elimination", 1999), with sets of
non-dominated points instead of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

EXACT_POINTS = 20_000
"""Tables up to this size keep every point that no other one beats."""

MOST_PAIRS = 4_000_000
"""No join of two fronts may make more points than this before they are thinned."""

MOST_POINTS = 1_000_000
"""No join with a table of single points, which thins nothing, may make more than this."""


class TooLarge(Exception):
    """A table would not fit into memory."""


@dataclass(frozen=True)
class Trail:
    """Where the points of a table came from.

    Attributes:
        scope: Variables of the table.
        shape: Options of each.
        starts: First point of each cell, then the number of points; int64 [cells + 1].
        parents: Tables it was made of; none for a plain one.
        places: For each parent, the point that was used, int32 [points].
    """

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    starts: np.ndarray
    parents: tuple[Trail, ...] = ()
    places: tuple[np.ndarray, ...] = ()

    def follow(self, point: int, options: dict[int, int]) -> None:
        """Note the option of every variable that one point stands for."""
        cell = int(np.searchsorted(self.starts, point, side="right")) - 1
        index = np.unravel_index(cell, self.shape) if self.shape else ()
        options.update(zip(self.scope, map(int, index)))
        for parent, places in zip(self.parents, self.places):
            parent.follow(int(places[point]), options)


@dataclass(frozen=True)
class Table:
    """The points of every cell, sorted by cell and, within it, by cost.

    Attributes:
        trail: Scope, shape, and where each point came from.
        costs: float64 [points].
        penalties: float64 [points].
    """

    trail: Trail
    costs: np.ndarray
    penalties: np.ndarray

    @property
    def scope(self) -> tuple[int, ...]:
        """Variables of the table."""
        return self.trail.scope

    @property
    def counts(self) -> np.ndarray:
        """Points of each cell, int64 [cells]."""
        return np.diff(self.trail.starts)


@dataclass(frozen=True)
class Thinning:
    """How many points a table may keep.

    Attributes:
        bucket: Width of the cost buckets of which each keeps its smallest penalty, once a
            table has more than `EXACT_POINTS`.
        dominated: Keep points as well that another one beats in cost and penalty.
    """

    bucket: float
    dominated: bool = False


def plain(scope: tuple[int, ...], costs: np.ndarray, penalties: np.ndarray) -> Table:
    """One point a cell; both arrays have an axis for each variable of ``scope``."""
    trail = Trail(scope, costs.shape, np.arange(costs.size + 1))
    return Table(trail, costs.ravel().astype(float), penalties.ravel().astype(float))


def join(left: Table, right: Table, thinning: Thinning) -> Table:
    """Add two tables: every point of a cell with every point that agrees on shared variables.

    Raises:
        TooLarge: There are more than `MOST_PAIRS` or `MOST_POINTS` points.
    """
    options = dict(zip(left.scope, left.trail.shape))
    options.update(zip(right.scope, right.trail.shape))
    scope = tuple(sorted(options))
    shape = tuple(options[v] for v in scope)
    index = np.unravel_index(np.arange(math.prod(shape)), shape) if shape else ()
    cells = [_cells(table, scope, index) for table in (left, right)]
    a, b = left.counts[cells[0]], right.counts[cells[1]]
    many = a.max() > 1 and b.max() > 1
    if int((a * b).sum()) > (MOST_PAIRS if many else MOST_POINTS):
        raise TooLarge
    cell = np.repeat(np.arange(len(a)), a * b)
    within = _within(a * b)
    places = (
        left.trail.starts[cells[0]][cell] + within // b[cell],
        right.trail.starts[cells[1]][cell] + within % b[cell],
    )
    costs = left.costs[places[0]] + right.costs[places[1]]
    penalties = left.penalties[places[0]] + right.penalties[places[1]]
    trail = Trail(scope, shape, np.zeros(1, np.int64), (left.trail, right.trail), places)
    return _make(trail, cell, Table(trail, costs, penalties), thinning if many else None)


def project(table: Table, variable: int, thinning: Thinning) -> Table:
    """Leave a variable out: each cell holds the best points over all of its options."""
    axis = table.scope.index(variable)
    shape = table.trail.shape
    cells = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1).ravel()
    counts = table.counts[cells]
    places = np.repeat(table.trail.starts[cells], counts) + _within(counts)
    cell = np.repeat(np.arange(len(cells)) // shape[axis], counts)
    scope = tuple(v for v in table.scope if v != variable)
    rest = shape[:axis] + shape[axis + 1 :]
    trail = Trail(scope, rest, np.zeros(1, np.int64), (table.trail,), (places,))
    points = Table(trail, table.costs[places], table.penalties[places])
    return _make(trail, cell, points, thinning)


def _cells(table: Table, scope: tuple[int, ...], index: Sequence[np.ndarray]) -> np.ndarray:
    """The cell of ``table`` that each cell of a wider scope belongs to."""
    if not table.scope:
        return np.zeros(len(index[0]) if index else 1, np.int64)
    own = tuple(index[scope.index(v)] for v in table.scope)
    return np.ravel_multi_index(own, table.trail.shape)


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... for each run of a length; int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _make(trail: Trail, cell: np.ndarray, points: Table, thinning: Thinning | None) -> Table:
    """Keep the points that thinning leaves and number them by cell."""
    if thinning is not None:
        keep = _best(cell, points.costs, points.penalties, thinning)
        cell = cell[keep]
        points = replace(points, costs=points.costs[keep], penalties=points.penalties[keep])
        trail = replace(trail, places=tuple(places[keep] for places in trail.places))
    starts = np.searchsorted(cell, np.arange(math.prod(trail.shape) + 1))
    places = tuple(part.astype(np.int32) for part in trail.places)
    return replace(points, trail=replace(trail, starts=starts, places=places))


def _best(
    cell: np.ndarray, costs: np.ndarray, penalties: np.ndarray, thinning: Thinning
) -> np.ndarray:
    """Indices of the points to keep, by cell, then by cost.

    The cheapest point of a cell has a bucket of its own, so the least cost is never lost.
    """
    if len(costs) <= EXACT_POINTS:
        bucket = np.unique(costs, return_inverse=True)[1].astype(np.int64)
    else:
        first = np.full(int(cell[-1]) + 1, np.inf)
        np.minimum.at(first, cell, costs)
        bucket = np.ceil((costs - first[cell]) / thinning.bucket).astype(np.int64)
    key = cell * (int(bucket.max()) + 1) + bucket
    order = np.lexsort((penalties, key))
    kept = order[np.flatnonzero(np.diff(key[order], prepend=-1))]
    if thinning.dominated:
        return kept
    # Lower ranks in later cells, so that one running minimum serves all cells.
    rank = np.unique(penalties[kept], return_inverse=True)[1].astype(np.int64)
    rank -= cell[kept] * (len(kept) + 1)
    better = np.flatnonzero(np.diff(np.minimum.accumulate(rank), prepend=len(kept) + 1))
    return kept[better]
