"""The best choice within a budget, and the whole front of budgets."""

from __future__ import annotations

import numpy as np

from slim_det.planning.budget.elimination import pareto_front
from slim_det.planning.budget.problem import Choice, Front, Problem
from slim_det.planning.budget.relaxation import relaxed_front
from slim_det.planning.budget.tables import TooLarge

ROUNDING = 1e-12
"""Share of a cost by which two sums of the same numbers may differ."""


def solve_front(problem: Problem, dominated: bool = False) -> Front:
    """The front of cost and penalty, exact where the graph of factors allows it.

    Args:
        problem: Penalties and factors.
        dominated: See `slim_det.planning.budget.elimination.pareto_front`.
    """
    try:
        return pareto_front(problem, dominated)
    except TooLarge:
        return relaxed_front(problem, dominated)


def best_within(front: Front, budget: float, least: float = -np.inf) -> int | None:
    """The point of the smallest penalty that costs at most ``budget`` and at least ``least``.

    Returns:
        Its index (the cheaper one of equals); None where there is none.
    """
    slack = ROUNDING * abs(budget)
    allowed = np.flatnonzero((front.costs <= budget + slack) & (front.costs >= least - slack))
    return int(allowed[np.argmin(front.penalties[allowed])]) if len(allowed) else None


def choose(
    problem: Problem, front: Front, budget: float, overshoot: float = np.inf
) -> tuple[Choice, str] | None:
    """The best choice within a budget, not further below it than need be.

    Where losses are negative or flat, the best choice may cost far less than was asked for; one
    between ``budget - overshoot`` and ``budget`` is then preferred, if there is any.

    Args:
        problem: Penalties and factors.
        front: Its front.
        budget: Largest cost.
        overshoot: How far below the budget is near enough.

    Returns:
        Options and method; None where even the cheapest choice costs more.
    """
    point = best_within(front, budget)
    if point is None:
        return None
    if front.costs[point] < budget - overshoot:
        every = solve_front(problem, dominated=True)
        inside = best_within(every, budget, budget - overshoot)
        if inside is not None:
            return every.choice(inside), every.method
    return front.choice(point), front.method


def sample_front(front: Front, rows: int) -> list[int]:
    """Indices of about ``rows`` points, evenly spread over the costs, both ends included."""
    wanted = np.linspace(front.costs[0], front.costs[-1], min(rows, len(front.costs)))
    nearest = np.abs(front.costs[None, :] - wanted[:, None]).argmin(axis=1)
    return np.unique(nearest).tolist()
