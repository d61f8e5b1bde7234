"""Approximate solution where the graph of factors is too wide: Lagrangian relaxation."""

from __future__ import annotations

import numpy as np

from slim_det.planning.budget.problem import Choice, Front, Problem

METHOD = "Lagrangian relaxation with coordinate descent (approximate: the model is too entangled)"
MULTIPLIERS = 60
ROUNDS = 30
POLISHED_POINTS = 40


def relaxed_front(problem: Problem, dominated: bool = False) -> Front:
    """Points that minimise penalty + multiplier x cost, for many multipliers.

    Each is found by coordinate descent from the neighbouring multiplier's solution, upwards from
    the uncut model and downwards from the smallest one (Everett, "Generalized Lagrange multiplier
    method", 1963). Nothing guarantees the optimum; costs and penalties are the true ones.

    Args:
        problem: Penalties and factors; the first option of each variable leaves it whole.
        dominated: Add points that others beat, from the smallest penalty to the whole model.
    """
    neighbours = _factors_of(problem)
    scale = _scale(problem)
    multipliers = scale * np.geomspace(1e-4, 1e4, MULTIPLIERS)
    cheapest = _descend(problem, neighbours, (0,) * len(problem.penalties), None)
    best = tuple(int(np.argmin(p)) for p in problem.penalties)
    seen: dict[Choice, None] = {best: None, cheapest: None}
    for start, sequence in ((best, multipliers), (cheapest, multipliers[::-1])):
        choice = start
        for multiplier in sequence.tolist():
            choice = _descend(problem, neighbours, choice, multiplier)
            seen[choice] = None
    for choice in _front(problem, list(seen))[:POLISHED_POINTS]:
        seen.update(dict.fromkeys(_single_moves(problem, choice)))
    choices = _front(problem, list(seen))
    if dominated:
        path = _restoring_path(problem, choices[-1])
        choices = list({*choices, *path})
        choices = [choices[i] for i in np.argsort(problem.costs(choices))]
    costs, penalties = problem.costs(choices), problem.losses(choices)
    return Front(costs, penalties, lambda point: choices[point], METHOD)


def _factors_of(problem: Problem) -> list[list[int]]:
    """Indices of the factors that each variable takes part in."""
    found: list[list[int]] = [[] for _ in problem.penalties]
    for number, factor in enumerate(problem.factors):
        for v in factor.scope:
            found[v].append(number)
    return found


def _scale(problem: Problem) -> float:
    penalties = sum(float(np.ptp(p)) for p in problem.penalties)
    costs = sum(float(np.ptp(f.costs)) for f in problem.factors)
    return (penalties or 1.0) / (costs or 1.0)


def _costs_of_options(
    problem: Problem, factors: list[int], choice: list[int], variable: int
) -> np.ndarray:
    """What each option of a variable costs while the others stay, float64 [options]."""
    total = np.zeros(len(problem.penalties[variable]))
    for number in factors:
        factor = problem.factors[number]
        index = tuple(slice(None) if v == variable else choice[v] for v in factor.scope)
        total += factor.costs[index]
    return total


def _descend(
    problem: Problem, factors: list[list[int]], start: Choice, multiplier: float | None
) -> Choice:
    """Change one variable at a time while it helps; no multiplier: only the cost counts."""
    choice = list(start)
    for _ in range(ROUNDS):
        before = list(choice)
        for v, penalty in enumerate(problem.penalties):
            costs = _costs_of_options(problem, factors[v], choice, v)
            value = costs if multiplier is None else penalty + multiplier * costs
            option = int(np.argmin(value))
            if value[option] < value[choice[v]]:
                choice[v] = option
        if choice == before:
            break
    return tuple(choice)


def _single_moves(problem: Problem, choice: Choice) -> list[Choice]:
    """The same choice with one variable changed, in every way."""
    return [
        (*choice[:v], option, *choice[v + 1 :])
        for v, penalty in enumerate(problem.penalties)
        for option in range(len(penalty))
    ]


def _restoring_path(problem: Problem, choice: Choice) -> list[Choice]:
    """Cut one variable one option less at a time, the least harmful first, until all are whole."""
    path = []
    while any(choice):
        path.append(choice)
        steps = [(*choice[:v], o - 1, *choice[v + 1 :]) for v, o in enumerate(choice) if o]
        choice = steps[int(np.argmin(problem.losses(steps)))]
    return [*path, choice]


def _front(problem: Problem, choices: list[Choice]) -> list[Choice]:
    """The choices that no other one beats, cheapest first."""
    costs, penalties = problem.costs(choices), problem.losses(choices)
    order = np.lexsort((penalties, costs))
    least = np.minimum.accumulate(penalties[order])
    better = np.flatnonzero(np.diff(least, prepend=np.inf))
    return [choices[i] for i in order[better].tolist()]
