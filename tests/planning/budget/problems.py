"""Small problems, and the truth about them by trying every combination."""

from __future__ import annotations

import itertools

import numpy as np

from slim_det.planning.budget.problem import Factor, Problem, merged

SCOPES = {
    "alone": [(0,), (1,)],
    "chain": [(0, 1), (1, 2), (2, 3)],
    "star": [(0, 1), (0, 2), (0, 3)],
    "triangle": [(0, 1), (1, 2), (0, 2), (0, 1, 2), (2,)],
    "apart": [(0, 1), (2, 3), (3,)],
    "square": [(0, 1), (1, 2), (2, 3), (0, 3)],
}


def problem_of(scopes: list[tuple[int, ...]], seed: int, integers: bool = False) -> Problem:
    """Random widths and losses; every factor is a product of widths, as of a convolution."""
    rng = np.random.default_rng(seed)
    count = max(v for scope in scopes for v in scope) + 1
    sizes = rng.integers(1, 5, count)
    widths = [np.sort(rng.integers(1, 9, n))[::-1].astype(float) for n in sizes]
    penalties = tuple(
        np.concatenate([[0.0], rng.integers(-1, 6, n - 1) if integers else rng.random(n - 1)])
        for n in sizes
    )
    factors = []
    for scope in scopes:
        costs = np.array(rng.integers(1, 5), float)
        for v in scope:
            costs = costs[..., None] * widths[v]
        factors.append(Factor(scope, costs))
    return Problem(penalties, merged(factors), float(rng.integers(0, 10)))


def every_choice(problem: Problem) -> list[tuple[float, float, tuple[int, ...]]]:
    """Cost and penalty of every combination, summed one by one."""
    found = []
    for choice in itertools.product(*(range(len(p)) for p in problem.penalties)):
        cost = problem.constant
        for factor in problem.factors:
            cost += factor.costs[tuple(choice[v] for v in factor.scope)]
        found.append((cost, sum(p[o] for p, o in zip(problem.penalties, choice)), choice))
    return found


def by_hand() -> Problem:
    """Two layers in a row, widths 4 or 2 and 4 or 1: costs 16, 8, 4, 2."""
    costs = np.outer([4.0, 2.0], [4.0, 1.0])
    return Problem((np.array([0.0, 0.3]), np.array([0.0, 0.2])), (Factor((0, 1), costs),))


def yolo_head() -> Problem:
    """Three chains of six groups with 19 options each."""
    rng = np.random.default_rng(0)
    shares = np.linspace(1.0, 0.1, 19)
    factors = [Factor((v,), rng.uniform(1, 5) * shares) for v in range(18)]
    factors += [
        Factor((v, v + 1), rng.uniform(5, 50) * np.outer(shares, shares))
        for v in range(17)
        if v % 6 != 5
    ]
    losses = tuple(rng.uniform(0.1, 1.5) * (1 - shares) ** rng.uniform(1.5, 4) for _ in range(18))
    return Problem(losses, merged(factors))
