"""The solver against every combination, and on problems that can be solved by hand."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.planning.budget import elimination, tables
from slim_det.planning.budget.elimination import elimination_order, pareto_front
from slim_det.planning.budget.problem import Factor, Front, Problem, merged
from slim_det.planning.budget.relaxation import relaxed_front
from slim_det.planning.budget.solver import best_within, choose, sample_front, solve_front

SCOPES = {
    "alone": [(0,), (1,)],
    "chain": [(0, 1), (1, 2), (2, 3)],
    "star": [(0, 1), (0, 2), (0, 3)],
    "triangle": [(0, 1), (1, 2), (0, 2), (0, 1, 2), (2,)],
    "apart": [(0, 1), (2, 3), (3,)],
    "square": [(0, 1), (1, 2), (2, 3), (0, 3)],
}


def problem_of(scopes: list[tuple[int, ...]], seed: int, whole_numbers: bool = False) -> Problem:
    """Random widths and losses; every factor is a product of widths, as of a convolution."""
    rng = np.random.default_rng(seed)
    count = max(v for scope in scopes for v in scope) + 1
    sizes = rng.integers(1, 5, count)
    widths = [np.sort(rng.integers(1, 9, n))[::-1].astype(float) for n in sizes]
    penalties = tuple(
        np.concatenate([[0.0], rng.integers(-1, 6, n - 1) if whole_numbers else rng.random(n - 1)])
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


def assert_true(problem: Problem, front: Front) -> None:
    """Each point costs and loses what its own choice does."""
    for point in range(len(front.costs)):
        choice = front.choice(point)
        assert problem.cost(choice) == pytest.approx(front.costs[point], rel=1e-9)
        assert problem.penalty(choice) == pytest.approx(front.penalties[point], abs=1e-9)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6), st.booleans())
def test_every_budget_gets_the_optimum(name: str, seed: int, whole_numbers: bool) -> None:
    problem = problem_of(SCOPES[name], seed, whole_numbers)
    every = every_choice(problem)
    front = pareto_front(problem)
    assert front.method == "exact dynamic programming"
    assert_true(problem, front)
    costs = sorted({cost for cost, _, _ in every})
    assert best_within(front, costs[0] - 0.5) is None
    for budget in costs:
        best = min(penalty for cost, penalty, _ in every if cost <= budget)
        point = best_within(front, budget)
        assert point is not None and front.penalties[point] == pytest.approx(best, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_no_point_of_the_front_beats_another(name: str, seed: int) -> None:
    front = pareto_front(problem_of(SCOPES[name], seed, whole_numbers=True))
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.penalties) < 0).all()


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_dominated_points_are_kept_if_asked(name: str, seed: int) -> None:
    """Every cost that can be reached is there, with its smallest penalty."""
    problem = problem_of(SCOPES[name], seed, whole_numbers=True)
    front = pareto_front(problem, dominated=True)
    best: dict[float, float] = {}
    for cost, penalty, _ in every_choice(problem):
        best[cost] = min(penalty, best.get(cost, np.inf))
    assert dict(zip(front.costs.tolist(), front.penalties.tolist())) == best


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_buckets_lose_little_and_never_the_least_cost(name: str, seed: int) -> None:
    """Thinned from the first table on, a budget is met with what the next bucket allows."""
    problem = problem_of(SCOPES[name], seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "EXACT_POINTS", 0)
        front = pareto_front(problem)
    assert_true(problem, front)
    every = every_choice(problem)
    assert front.costs[0] == pytest.approx(min(cost for cost, _, _ in every))
    slack = elimination.BUCKET_SHARE * problem.largest_cost * 2 * len(problem.penalties)
    for budget in sorted({cost for cost, _, _ in every}):
        best = min((p for c, p, _ in every if c <= budget - slack), default=np.inf)
        point = best_within(front, budget)
        assert point is not None and front.penalties[point] <= best + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_relaxation_tells_the_truth_and_meets_budgets(name: str, seed: int) -> None:
    problem = problem_of(SCOPES[name], seed)
    front = relaxed_front(problem)
    assert_true(problem, front)
    every = every_choice(problem)
    best_possible = min(penalty for _, penalty, _ in every)
    assert front.penalties[-1] == pytest.approx(best_possible, abs=1e-9)
    assert front.costs[0] == pytest.approx(min(cost for cost, _, _ in every))


def test_nothing_to_choose() -> None:
    """No variable at all, and variables with one option each."""
    front = pareto_front(Problem((), (), 5.0))
    assert front.costs.tolist() == [5.0] and front.choice(0) == ()
    single = Problem((np.zeros(1), np.zeros(1)), (Factor((0, 1), np.full((1, 1), 3.0)),), 1.0)
    front = pareto_front(single)
    assert front.costs.tolist() == [4.0] and front.choice(0) == (0, 0)


def by_hand() -> Problem:
    """Two layers in a row, widths 4 or 2 and 4 or 1: costs 16, 8, 4, 2."""
    costs = np.outer([4.0, 2.0], [4.0, 1.0])
    return Problem((np.array([0.0, 0.3]), np.array([0.0, 0.2])), (Factor((0, 1), costs),))


def test_costs_multiply() -> None:
    """Width 1 of the second beats width 2 of the first, which a sum of savings would miss."""
    front = pareto_front(by_hand())
    assert front.costs.tolist() == [2.0, 4.0, 16.0]
    assert front.penalties.tolist() == pytest.approx([0.5, 0.2, 0.0])
    assert [front.choice(p) for p in range(3)] == [(1, 1), (0, 1), (0, 0)]


def test_budget_below_the_least_is_refused() -> None:
    problem = by_hand()
    front = solve_front(problem)
    assert choose(problem, front, 1.9) is None
    found = choose(problem, front, 2.0)
    assert found is not None and found[0] == (1, 1)


def test_harmless_cuts_do_not_overshoot() -> None:
    """Cutting costs nothing, yet a budget of 8 is met with 8, not with 2."""
    problem = by_hand()
    harmless = Problem((np.zeros(2), np.array([0.0, -0.1])), problem.factors)
    front = solve_front(harmless)
    loose = choose(harmless, front, 8.0)
    assert loose is not None and harmless.cost(loose[0]) == 2.0
    near = choose(harmless, front, 8.0, overshoot=1.0)
    assert near is not None and harmless.cost(near[0]) == 8.0
    none_near = choose(harmless, front, 15.0, overshoot=1.0)
    assert none_near == loose


def test_too_wide_graphs_are_relaxed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything tied to everything: told in the method, still true and within budget."""
    scopes = list(itertools.combinations(range(6), 2))
    problem = problem_of(scopes, 3)
    monkeypatch.setattr(elimination, "MOST_CELLS", 10)
    with pytest.raises(tables.TooLarge):
        elimination_order(problem)
    front = solve_front(problem)
    assert "approximate" in front.method
    assert_true(problem, front)
    budget = float(front.costs.mean())
    exact = min(p for c, p, _ in every_choice(problem) if c <= budget)
    point = best_within(front, budget)
    assert point is not None and front.costs[point] <= budget
    assert exact - 1e-9 <= front.penalties[point] <= exact + 0.5
    found = choose(problem, front, budget, overshoot=0.01)
    assert found is not None and problem.cost(found[0]) <= budget


def test_fill_is_avoided() -> None:
    """The hub of a star is eliminated last, or next to last."""
    star = Problem(
        tuple(np.zeros(3) for _ in range(5)),
        tuple(Factor((0, v), np.ones((3, 3))) for v in range(1, 5)),
    )
    assert elimination_order(star).index(0) >= 3


def test_size_of_a_yolo_head() -> None:
    """Three chains of six groups with 19 options each take a few seconds at most."""
    rng = np.random.default_rng(0)
    shares = np.linspace(1.0, 0.1, 19)
    factors = [Factor((v,), rng.uniform(1, 5) * shares) for v in range(18)]
    factors += [
        Factor((v, v + 1), rng.uniform(5, 50) * np.outer(shares, shares))
        for v in range(17)
        if v % 6 != 5
    ]
    losses = tuple(rng.uniform(0.1, 1.5) * (1 - shares) ** rng.uniform(1.5, 4) for _ in range(18))
    problem = Problem(losses, merged(factors))
    start = time.process_time()
    front = pareto_front(problem)
    assert time.process_time() - start < 10.0
    assert "buckets of 0.02%" in front.method and len(front.costs) > 500
    for point in sample_front(front, 12):
        assert problem.cost(front.choice(point)) == pytest.approx(front.costs[point], rel=1e-9)
    gaps = np.diff(front.costs) / problem.largest_cost
    assert np.median(gaps) < 0.001


def test_sample_holds_both_ends() -> None:
    front = pareto_front(by_hand())
    assert sample_front(front, 12) == [0, 1, 2] and sample_front(front, 2) == [0, 2]
