"""The best choice within a budget, by mixed-integer linear programming (HiGHS, through scipy)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from slim_det.planning.budget.pareto import TooLarge, pareto_front
from slim_det.planning.budget.problem import Choice, Front, Problem

ROUNDING = 1e-12
"""Relative difference, from rounding, between two sums of the same numbers."""

SECONDS = 120.0
"""Time limit of the solver, which then gives the best choice so far."""

FRONT_BUDGETS = 12
FRONT_SECONDS = 20.0
FRONT_GAP = 1e-3
"""Number and effort of the budgets, where dynamic programming cannot give the front."""

COST_UNIT, PENALTY_UNIT = 1e3, 1e5
"""The largest cost and a penalty of 1 in the solver's numbers; its tolerances are near 1e-6."""

TIE = 1e-4
"""What the largest cost adds to the objective, so that the cheaper of equal choices wins."""

MAX_TIGHTENINGS = 10


@dataclass(frozen=True)
class Best:
    """A choice, and by how much the penalty of another one may be smaller, at most."""

    choice: Choice
    gap: float

    @property
    def method(self) -> str:
        """How it was found, for people."""
        if self.gap <= 1e-9:
            return "mixed-integer linear programming, optimal"
        more = float(np.expm1(self.gap))
        return (
            "mixed-integer linear programming, stopped early: another plan may keep up to "
            f"{more:.2%} more of the metric"
        )


class _Program:
    """A problem as linear constraints.

    Every option has a binary column, every combination of options of a factor a continuous one
    between 0 and 1 that holds its cost. The columns of a factor with one option of a variable add
    up to the column of this option, so that exactly the combination of the chosen options is 1
    (the local marginal polytope: Wainwright and Jordan, "Graphical models, exponential families,
    and variational inference", 2008, section 4.1.1).
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._sizes = [len(p) for p in problem.penalties]
        options = sparse.eye(sum(self._sizes), format="csr")
        of_variable = np.split(np.arange(sum(self._sizes)), np.cumsum(self._sizes)[:-1])
        blank = [None] * len(problem.factors)
        one_each = sparse.block_diag([np.ones((1, n)) for n in self._sizes])
        rows: list[list[Any]] = [[one_each, *blank]]
        for number, factor in enumerate(problem.factors):
            for axis, variable in enumerate(factor.scope):
                sums = reduce(
                    sparse.kron,
                    [
                        sparse.eye(n) if a == axis else np.ones((1, n))
                        for a, n in enumerate(factor.costs.shape)
                    ],
                )
                row = [-options[of_variable[variable]], *blank]
                row[number + 1] = sums
                rows.append(row)
        self._rows = sparse.bmat(rows, format="csr")
        self._sums = np.zeros(self._rows.shape[0])
        self._sums[: len(self._sizes)] = 1.0
        self._scale = COST_UNIT / max(problem.largest_cost, 1e-12)
        costs = [f.costs.ravel() for f in problem.factors]
        self._costs = np.concatenate([np.zeros(sum(self._sizes)), *costs]) * self._scale
        self._least_penalty = float(sum(p.min() for p in problem.penalties))
        self._objective = TIE / COST_UNIT * self._costs
        self._objective[: sum(self._sizes)] += np.concatenate(problem.penalties) * PENALTY_UNIT

    def best(self, budget: float, least: float, seconds: float, gap: float = 0.0) -> Best | None:
        """The smallest penalty of the choices that cost between ``least`` and ``budget``.

        The solver may exceed a budget by its tolerance. It then solves again with a smaller one.

        Returns:
            None if there is none, or none was found in time.
        """
        slack, most = ROUNDING * abs(budget), budget
        for _ in range(MAX_TIGHTENINGS):
            result = self._solve(self._objective, most, least, seconds, gap)
            if result.x is None:
                return None
            choice = self._choice(result)
            excess = self._problem.cost(choice) - budget
            if not excess > slack:
                bound = max(result.mip_dual_bound / PENALTY_UNIT, self._least_penalty)
                return Best(choice, max(result.fun / PENALTY_UNIT - bound, 0.0))
            most -= 2.0 * excess
        return None

    def cheapest(self) -> Choice:
        """The choice with the smallest cost."""
        return self._choice(self._solve(self._costs, np.inf, -np.inf, SECONDS, 0.0))

    def least_harmful(self) -> Choice:
        """The choice with the smallest penalty, whatever it costs."""
        return self._choice(self._solve(self._objective, np.inf, -np.inf, SECONDS, 0.0))

    def _solve(
        self, objective: np.ndarray, most: float, least: float, seconds: float, gap: float
    ) -> Any:
        low, high = ((x - self._problem.constant) * self._scale for x in (least, most))
        return milp(
            objective,
            integrality=np.arange(len(objective)) < sum(self._sizes),
            bounds=Bounds(0.0, 1.0),
            constraints=[
                LinearConstraint(self._rows, self._sums, self._sums),
                LinearConstraint(self._costs[None], low, high),
            ],
            # With presolve, HiGHS 1.8 calls one problem in a thousand infeasible that is not, or a
            # worse choice optimal (seen in test_solver.py; also ERGO-Code/HiGHS issue 1725).
            options={"time_limit": seconds, "mip_rel_gap": gap, "presolve": False},
        )

    def _choice(self, result: Any) -> Choice:
        columns = np.split(result.x[: sum(self._sizes)], np.cumsum(self._sizes)[:-1])
        return tuple(int(np.argmax(own)) for own in columns)


def choose(problem: Problem, budget: float, overshoot: float = np.inf) -> Best | None:
    """The best choice within a budget, not further below it than need be.

    If losses are negative or flat, the best choice may cost far less than the budget; one between
    ``budget - overshoot`` and ``budget`` is then preferred, if there is any. The same problem gives
    the same choice, unless the time is up.

    Returns:
        None if even the cheapest choice costs more, or none is found in time.
    """
    program = _Program(problem)
    found = program.best(budget, budget - overshoot, SECONDS)
    if found is None and overshoot < np.inf:
        found = program.best(budget, -np.inf, SECONDS)
    return found


def least_cost(problem: Problem) -> float:
    """The smallest cost of any choice."""
    return problem.cost(_Program(problem).cheapest())


def solve_front(problem: Problem) -> Front:
    """The front of cost and penalty; of few budgets if there are too many combinations."""
    try:
        return pareto_front(problem)
    except TooLarge:
        return budget_front(problem)


def budget_front(problem: Problem) -> Front:
    """The best choices of `FRONT_BUDGETS` budgets, evenly spread from the smallest cost up.

    Between the two ends only every second option counts, which saves most of the time.
    """
    full = _Program(problem)
    choices = [full.cheapest(), full.least_harmful()]
    low, high = (problem.cost(choice) for choice in choices)
    kept = [_every_second(len(p)) for p in problem.penalties]
    program = _Program(problem.restricted(kept))
    for budget in np.linspace(low, high, FRONT_BUDGETS)[:-1].tolist():
        found = program.best(budget, -np.inf, FRONT_SECONDS, FRONT_GAP)
        if found:
            choices.append(tuple(own[option] for own, option in zip(kept, found.choice)))
    costs = np.array([problem.cost(choice) for choice in choices])
    penalties = np.array([problem.penalty(choice) for choice in choices])
    order = np.lexsort((penalties, costs))
    better = np.diff(np.minimum.accumulate(penalties[order]), prepend=np.inf) < 0
    return Front(costs[order][better], penalties[order][better])


def _every_second(count: int) -> list[int]:
    """Every second index, the last one as well."""
    return sorted({*range(0, count, 2), count - 1})


def sample_front(front: Front, rows: int) -> list[int]:
    """Indices of about ``rows`` points, evenly spread over the costs, both ends included."""
    wanted = np.linspace(front.costs[0], front.costs[-1], min(rows, len(front.costs)))
    nearest = np.abs(front.costs[None, :] - wanted[:, None]).argmin(axis=1)
    return np.unique(nearest).tolist()
