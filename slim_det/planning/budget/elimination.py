"""Exact solution by dynamic programming over the graph of factors."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from slim_det.planning.budget.problem import Choice, Front, Problem
from slim_det.planning.budget.tables import (
    EXACT_POINTS,
    Table,
    Thinning,
    TooLarge,
    join,
    plain,
    project,
)

BUCKET_SHARE = 2e-4
"""Width of a cost bucket, as a share of the whole cost."""

MOST_CELLS = 20_000
"""No table is allowed more combinations of options than this."""


def elimination_order(problem: Problem) -> list[int]:
    """Order in which variables are eliminated: always the one that ties fewest others anew.

    The min-fill heuristic (Koller and Friedman, "Probabilistic Graphical Models", 9.4.3.2).

    Raises:
        TooLarge: A table on the way has more than `MOST_CELLS` cells.
    """
    sizes = [len(p) for p in problem.penalties]
    near: list[set[int]] = [set() for _ in sizes]
    for factor in problem.factors:
        for v in factor.scope:
            near[v] |= set(factor.scope) - {v}
    left, order = set(range(len(sizes))), []
    while left:
        best = min(left, key=lambda v: (_fill(near, v), math.prod(sizes[n] for n in near[v]), v))
        if math.prod(sizes[n] for n in (best, *near[best])) > MOST_CELLS:
            raise TooLarge
        for v in near[best]:
            near[v] = (near[v] | near[best]) - {v, best}
        left.discard(best)
        order.append(best)
    return order


def pareto_front(problem: Problem, dominated: bool = False) -> Front:
    """Every budget against the smallest penalty that meets it.

    Variables are eliminated one by one; each cell of a table holds a front of (cost, penalty).
    A front is exact until a table has more than `EXACT_POINTS` points. From then on each cost
    bucket of `BUCKET_SHARE` of the whole cost keeps its smallest penalty only, so a penalty may
    belong to a budget that is up to one bucket an elimination larger; costs stay the true ones.

    Args:
        problem: Penalties and factors.
        dominated: Keep points that another one beats, one a bucket: for a cost that is to be
            reached, not only stayed below.

    Raises:
        TooLarge: The graph is too wide for it.
    """
    thinning = Thinning(BUCKET_SHARE * max(problem.largest_cost, 1e-12), dominated)
    tables: list[Table] = []
    factors = list(problem.factors)
    thinned = False
    for variable in elimination_order(problem):
        mine = [f for f in factors if variable in f.scope]
        factors = [f for f in factors if variable not in f.scope]
        joined = _own_table(problem, variable, [(f.scope, f.costs) for f in mine])
        for table in sorted((t for t in tables if variable in t.scope), key=lambda t: len(t.costs)):
            joined = join(joined, table, thinning)
        tables = [t for t in tables if variable not in t.scope]
        thinned = thinned or len(joined.costs) > EXACT_POINTS
        tables.append(project(joined, variable, thinning))
    whole = plain((), np.zeros(()) + problem.constant, np.zeros(()))
    for table in sorted(tables, key=lambda t: len(t.costs)):
        thinned = thinned or len(whole.costs) * len(table.costs) > EXACT_POINTS
        whole = join(whole, table, thinning)

    def choice(point: int) -> Choice:
        options: dict[int, int] = {}
        whole.trail.follow(point, options)
        return tuple(options[v] for v in range(len(problem.penalties)))

    method = "exact dynamic programming"
    if thinned:
        method = f"dynamic programming, costs in buckets of {BUCKET_SHARE:.2%}"
    return Front(whole.costs, whole.penalties, choice, method)


def _fill(near: list[set[int]], variable: int) -> int:
    """Pairs of neighbours that eliminating a variable would tie."""
    return sum(b not in near[a] for a, b in combinations(near[variable], 2))


def _own_table(
    problem: Problem, variable: int, factors: list[tuple[tuple[int, ...], np.ndarray]]
) -> Table:
    """The sum of a variable's factors, with its penalties."""
    scope = tuple(sorted({variable, *(v for own, _ in factors for v in own)}))
    shape = tuple(len(problem.penalties[v]) for v in scope)
    costs = np.zeros(shape)
    for own, values in factors:
        costs += values.reshape([n if v in own else 1 for v, n in zip(scope, shape)])
    penalty = problem.penalties[variable]
    penalties = penalty.reshape([n if v == variable else 1 for v, n in zip(scope, shape)])
    return plain(scope, costs, np.broadcast_to(penalties, shape))
