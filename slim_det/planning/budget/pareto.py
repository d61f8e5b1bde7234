"""The Pareto front of cost and penalty, by dynamic programming over the graph of factors.

Variables are eliminated one by one (Dechter, "Bucket elimination", 1999); the cells of a table
hold fronts of (cost, penalty) instead of numbers. One run gives all budgets at once, whereas a
mixed-integer program would have to be solved for each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from slim_det.planning.budget.problem import Factor, Front, Problem

BUCKET_SHARE = 2e-4
"""Width of a cost bucket, as a share of the largest cost."""

EXACT_POINTS = 20_000
"""Tables up to this size keep every point that no other dominates."""

MAX_CELLS = 20_000
"""Combinations of options in a table."""

MAX_PAIRS = 4_000_000
"""Points of a join of two fronts, before they are thinned."""

MAX_POINTS = 1_000_000
"""Points of a join with a table of single points, which are not thinned."""


class TooLarge(Exception):
    """A table would not fit into memory."""


@dataclass(frozen=True)
class _Table:
    """The points of every combination of options (cell), sorted by cell, then by cost.

    Attributes:
        scope: Variables, ascending.
        shape: Options of each.
        starts: First point of each cell, then the number of points; int64 [cells + 1].
        costs: float64 [points].
        penalties: float64 [points].
    """

    scope: tuple[int, ...]
    shape: tuple[int, ...]
    starts: np.ndarray
    costs: np.ndarray
    penalties: np.ndarray

    def runs(self, scope: Sequence[int], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """First point and number of points for each cell of a wider scope, int64 [cells]."""
        own = [n if v in self.scope else 1 for v, n in zip(scope, shape)]
        first, counts = (
            np.broadcast_to(values.reshape(own), shape).ravel()
            for values in (self.starts[:-1], np.diff(self.starts))
        )
        return first, counts


def pareto_front(problem: Problem) -> Front:
    """The smallest penalty of every budget.

    It is exact until a table has more than `EXACT_POINTS` points. From then on only the smallest
    penalty in each cost bucket is kept, so a penalty may belong to a budget that is larger by up to
    one bucket per elimination; costs stay the true ones.

    Raises:
        TooLarge: Too many variables depend on each other.
    """
    bucket = BUCKET_SHARE * max(problem.largest_cost, 1e-12)
    tables: list[_Table] = []
    factors = list(problem.factors)
    for variable in elimination_order(problem):
        joined = _own_table(problem, variable, [f for f in factors if variable in f.scope])
        factors = [f for f in factors if variable not in f.scope]
        for table in _smallest_first(t for t in tables if variable in t.scope):
            joined = _join(joined, table, bucket)
        tables = [t for t in tables if variable not in t.scope]
        tables.append(_eliminate(joined, variable, bucket))
    total = _plain((), np.array(problem.constant), np.zeros(()))
    for table in _smallest_first(tables):
        total = _join(total, table, bucket)
    return Front(total.costs, total.penalties)


def elimination_order(problem: Problem) -> list[int]:
    """Order in which variables are eliminated: always the one that adds the fewest ties.

    The min-fill heuristic (Koller and Friedman, "Probabilistic Graphical Models", 9.4.3.2).

    Raises:
        TooLarge: A table on the way has more than `MAX_CELLS` cells.
    """
    sizes = [len(p) for p in problem.penalties]
    near: list[set[int]] = [set() for _ in sizes]
    for factor in problem.factors:
        for v in factor.scope:
            near[v] |= set(factor.scope) - {v}
    left, order = set(range(len(sizes))), []
    while left:
        best = min(left, key=lambda v: (_fill(near, v), math.prod(sizes[n] for n in near[v]), v))
        if math.prod(sizes[n] for n in (best, *near[best])) > MAX_CELLS:
            raise TooLarge
        for v in near[best]:
            near[v] = (near[v] | near[best]) - {v, best}
        left.discard(best)
        order.append(best)
    return order


def _fill(near: list[set[int]], variable: int) -> int:
    """Pairs of neighbours that eliminating a variable would tie."""
    return sum(b not in near[a] for a, b in combinations(near[variable], 2))


def _smallest_first(tables: Iterable[_Table]) -> list[_Table]:
    return sorted(tables, key=lambda table: len(table.costs))


def _own_table(problem: Problem, variable: int, factors: list[Factor]) -> _Table:
    """The sum of a variable's factors, with its penalties."""
    scope = tuple(sorted({variable, *(v for factor in factors for v in factor.scope)}))
    shape = tuple(len(problem.penalties[v]) for v in scope)
    costs = np.zeros(shape)
    for factor in factors:
        costs += factor.costs.reshape([n if v in factor.scope else 1 for v, n in zip(scope, shape)])
    penalty = problem.penalties[variable]
    penalties = penalty.reshape([n if v == variable else 1 for v, n in zip(scope, shape)])
    return _plain(scope, costs, np.broadcast_to(penalties, shape))


def _plain(scope: tuple[int, ...], costs: np.ndarray, penalties: np.ndarray) -> _Table:
    """One point per cell; both arrays have an axis for each variable of ``scope``."""
    starts = np.arange(costs.size + 1)
    return _Table(scope, costs.shape, starts, costs.ravel().astype(float), penalties.ravel())


def _join(left: _Table, right: _Table, bucket: float) -> _Table:
    """Add two tables: every point of a cell with every point that agrees on shared variables."""
    options = {**dict(zip(left.scope, left.shape)), **dict(zip(right.scope, right.shape))}
    scope = tuple(sorted(options))
    shape = tuple(options[v] for v in scope)
    (first, a), (second, b) = left.runs(scope, shape), right.runs(scope, shape)
    fronts = a.max() > 1 and b.max() > 1
    if int((a * b).sum()) > (MAX_PAIRS if fronts else MAX_POINTS):
        raise TooLarge
    cell = np.repeat(np.arange(len(a)), a * b)
    within = _within(a * b)
    i, j = first[cell] + within // b[cell], second[cell] + within % b[cell]
    costs, penalties = left.costs[i] + right.costs[j], left.penalties[i] + right.penalties[j]
    if fronts:
        return _thinned(scope, shape, cell, costs, penalties, bucket)
    return _Table(scope, shape, np.append(0, np.cumsum(a * b)), costs, penalties)


def _eliminate(table: _Table, variable: int, bucket: float) -> _Table:
    """Drop a variable: each cell holds the best points over all of its options."""
    axis = table.scope.index(variable)
    cells = np.arange(len(table.starts) - 1).reshape(table.shape)
    cells = np.moveaxis(cells, axis, -1).ravel()
    counts = np.diff(table.starts)[cells]
    points = np.repeat(table.starts[cells], counts) + _within(counts)
    cell = np.repeat(np.arange(len(cells)) // table.shape[axis], counts)
    scope = tuple(v for v in table.scope if v != variable)
    shape = table.shape[:axis] + table.shape[axis + 1 :]
    return _thinned(scope, shape, cell, table.costs[points], table.penalties[points], bucket)


def _within(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... in runs of these lengths; int64 [sum of counts]."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)


def _thinned(
    scope: tuple[int, ...],
    shape: tuple[int, ...],
    cell: np.ndarray,
    costs: np.ndarray,
    penalties: np.ndarray,
    bucket: float,
) -> _Table:
    """A table of the points that no cheaper one of their cell (by bucket) equals or beats.

    The cheapest point of a cell has a bucket of its own, so it is never lost.
    """
    key = costs
    if len(costs) > EXACT_POINTS:
        least = np.full(math.prod(shape), np.inf)
        np.minimum.at(least, cell, costs)
        key = np.ceil((costs - least[cell]) / bucket)
    order = np.lexsort((costs, penalties, key, cell))
    # Lower ranks in later cells, so that one running minimum serves all cells.
    rank = np.unique(penalties[order], return_inverse=True)[1] - cell[order] * (len(order) + 1)
    better = np.diff(np.minimum.accumulate(rank), prepend=len(order) + 1) != 0
    keep = order[better]
    starts = np.searchsorted(cell[keep], np.arange(math.prod(shape) + 1))
    return _Table(scope, shape, starts, costs[keep], penalties[keep])
