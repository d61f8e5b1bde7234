"""Candidates: several plans for one budget, of which the best is found by measuring them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from slim_det.planning.budget.search import BudgetSearch, Solution
from slim_det.planning.budget.targets import Target

logger = logging.getLogger("slim_det")

SQUARED = 2.0
"""Power of the penalties of the candidate `spread`."""


@dataclass(frozen=True)
class Candidate:
    """A plan to judge.

    Attributes:
        name: How it was made; ``solver = spread`` if two ways give the same plan.
        solution: The plan and its costs.
    """

    name: str
    solution: Solution


def candidates(search: BudgetSearch, target: Target, count: int) -> list[Candidate]:
    """Different plans that meet a target, the best predicted one first.

    - ``solver``: the smallest predicted loss.
    - ``uniform``: one ratio for every group, as far as it is allowed.
    - ``spread``: the smallest sum of squared penalties, so that no layer loses much.
    - ``between``: for each group the mean ratio of the first two, scaled to the budget.

    Args:
        search: The model with its losses.
        target: The budget; with ``loss`` there is only the solver's plan.
        count: How many of them, from the first; equal plans become one.

    Raises:
        ConfigError: No plan meets the target, or the plan that does cuts nothing.
    """
    solution = search.solve(target)
    found = [Candidate("solver", solution)]
    if target.kind == "loss":
        return found
    for name, make in list(_OTHERS.items())[: count - 1]:
        made = make(search, target, solution)
        if made is None or not any(made[0].values()):
            logger.warning("candidate '%s' does not meet the target and is left out", name)
            continue
        found = _added(found, Candidate(name, _like(search, solution, *made)))
    return found


def _added(found: list[Candidate], new: Candidate) -> list[Candidate]:
    """The list with one more plan, or with one more name of a plan that is in it."""
    for i, old in enumerate(found):
        if old.solution.removed == new.solution.removed:
            return [*found[:i], replace(old, name=f"{old.name} = {new.name}"), *found[i + 1 :]]
    return [*found, new]


def _like(
    search: BudgetSearch, solution: Solution, removed: dict[str, int], method: str
) -> Solution:
    """Another plan for the same budget."""
    return replace(
        solution,
        removed=removed,
        retained=search.retained(removed),
        after=search.costs(removed),
        method=method,
    )


_Made = tuple["dict[str, int]", str]


def _uniform(search: BudgetSearch, target: Target, solution: Solution) -> _Made | None:
    removed = search.scaled(target, {group.name: 1.0 for group in search.groups})
    return None if removed is None else (removed, "one ratio for every group")


def _between(search: BudgetSearch, target: Target, solution: Solution) -> _Made | None:
    uniform = _uniform(search, target, solution)
    if uniform is None:
        return None
    both = (solution.removed, uniform[0])
    shares = {g.name: sum(plan[g.name] for plan in both) / len(g.units) for g in search.groups}
    removed = search.scaled(target, shares)
    return None if removed is None else (removed, "the mean of the best predicted and equal ratios")


def _spread(search: BudgetSearch, target: Target, solution: Solution) -> _Made | None:
    removed, method = search.removed(target, SQUARED)
    return removed, f"{method}, with squared penalties"


_OTHERS: dict[str, Callable[[BudgetSearch, Target, Solution], _Made | None]] = {
    "uniform": _uniform,
    "spread": _spread,
    "between": _between,
}

MOST = 1 + len(_OTHERS)
"""The largest number of candidates."""
