"""The solver against every combination, and on problems that can be solved by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slim_det.planning.budget import pareto, solver
from slim_det.planning.budget.pareto import pareto_front
from slim_det.planning.budget.problem import Factor, Problem
from slim_det.planning.budget.solver import (
    Best,
    budget_front,
    choose,
    sample_front,
    solve_front,
)
from tests.planning.budget.problems import SCOPES, by_hand, every_choice, problem_of, yolo_head


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6), st.booleans())
@example("star", 4602, False)  # HiGHS 1.8 with presolve: infeasible
@example("square", 737834, True)  # infeasible
@example("square", 97653, False)  # infeasible
@example("star", 575096, False)  # not the optimum
def test_every_budget_gets_the_optimum(name: str, seed: int, integers: bool) -> None:
    """The budget itself is met, even at exactly the cost of a choice."""
    problem = problem_of(SCOPES[name], seed, integers)
    every = every_choice(problem)
    costs = sorted({cost for cost, _, _ in every})
    assert choose(problem, costs[0] - 0.5) is None
    for budget in costs[:: max(1, len(costs) // 5)]:
        best = min(penalty for cost, penalty, _ in every if cost <= budget)
        found = choose(problem, budget)
        assert found is not None and found.gap <= 1e-9
        assert problem.cost(found.choice) <= budget * (1 + 1e-12)
        assert problem.penalty(found.choice) == pytest.approx(best, abs=2e-9)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6), st.floats(0.0, 1.0))
@example("alone", 0, 1 - 2**-53)  # a budget that rounding makes smaller than the cost it is for
def test_a_window_gets_the_optimum_within_it(name: str, seed: int, share: float) -> None:
    """Between the budget and the overshoot if anything is, else anywhere below the budget."""
    problem = problem_of(SCOPES[name], seed)
    every = every_choice(problem)
    costs = sorted(cost for cost, _, _ in every)
    budget = costs[0] + share * (costs[-1] - costs[0])
    found = choose(problem, budget, overshoot=2.0)
    assert found is not None
    below = [(c, p) for c, p, _ in every if c <= budget * (1 + solver.ROUNDING)]
    allowed = [(c, p) for c, p in below if c >= budget - 2.0] or below
    best = min(p for _, p in allowed)
    assert problem.penalty(found.choice) == pytest.approx(best, abs=2e-9)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_front_of_budgets_is_true(name: str, seed: int) -> None:
    """Reachable points, both ends the best there are, none better than another."""
    problem = problem_of(SCOPES[name], seed)
    every = np.array([(cost, penalty) for cost, penalty, _ in every_choice(problem)])
    front = budget_front(problem)
    for point in zip(front.costs, front.penalties):
        assert np.isclose(every, point, rtol=1e-9, atol=1e-9).all(axis=1).any()
    assert front.costs[0] == pytest.approx(every[:, 0].min())
    assert front.penalties[-1] == pytest.approx(every[:, 1].min(), abs=2e-9)
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.penalties) < 0).all()


def test_budget_below_the_least_is_refused() -> None:
    problem = by_hand()
    assert choose(problem, 1.9) is None
    found = choose(problem, 2.0)
    assert found is not None and found.choice == (1, 1)


def test_variables_with_one_option_each() -> None:
    single = Problem((np.zeros(1), np.zeros(1)), (Factor((0, 1), np.full((1, 1), 3.0)),), 1.0)
    found = choose(single, 4.0)
    assert found is not None and found.choice == (0, 0)


def test_harmless_cuts_do_not_overshoot() -> None:
    """Cutting costs nothing, yet a budget of 8 is met with 8, not with 2."""
    problem = by_hand()
    harmless = Problem((np.zeros(2), np.array([0.0, -0.1])), problem.factors)
    loose = choose(harmless, 8.0)
    assert loose is not None and harmless.cost(loose.choice) == 2.0
    near = choose(harmless, 8.0, overshoot=1.0)
    assert near is not None and harmless.cost(near.choice) == 8.0
    none_near = choose(harmless, 15.0, overshoot=1.0)
    assert none_near == loose


def test_the_true_cost_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that allows a unit too much is made to solve again with less."""
    problem, budgets = by_hand(), []
    exact = solver._Program._solve

    def loose(self, objective, most, *rest):
        budgets.append(most)
        return exact(self, objective, most + 1.0, *rest)

    monkeypatch.setattr(solver._Program, "_solve", loose)
    found = choose(problem, 3.5)
    assert found is not None and problem.cost(found.choice) == 2.0
    assert budgets == [3.5, 2.5]


def test_graphs_too_wide_for_dynamic_programming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything tied to everything: the front has few budgets, a plan is still the optimum."""
    problem = problem_of(list(itertools.combinations(range(6), 2)), 3)
    monkeypatch.setattr(pareto, "MAX_CELLS", 10)
    with pytest.raises(pareto.TooLarge):
        pareto_front(problem)
    front = solve_front(problem)
    assert 2 <= len(front.costs) <= solver.FRONT_BUDGETS + 1
    budget = float(front.costs.mean())
    found = choose(problem, budget)
    assert found is not None and problem.cost(found.choice) <= budget
    exact = min(p for c, p, _ in every_choice(problem) if c <= budget)
    assert problem.penalty(found.choice) == pytest.approx(exact, abs=2e-9)


def test_the_head_of_a_yolo_meets_its_front_twice() -> None:
    """The same plan each time, no worse than the front that dynamic programming finds."""
    problem = yolo_head()
    front = pareto_front(problem)
    for point in sample_front(front, 4)[1:3]:
        budget = float(front.costs[point])
        first, second = choose(problem, budget), choose(problem, budget)
        assert first is not None and first == second
        assert problem.cost(first.choice) <= budget * (1 + 1e-12)
        assert problem.penalty(first.choice) <= front.penalties[point] + 2e-9


def test_the_gap_bounds_what_is_missed() -> None:
    """Stopped within half of the optimum, the solver still gives a bound of the distance."""
    problem = yolo_head()
    budget = 0.4 * problem.largest_cost
    best, early = choose(problem, budget), solver._Program(problem).best(budget, -np.inf, 60, 0.5)
    assert best is not None and early is not None and early.gap > 1e-3
    least, reached = problem.penalty(best.choice), problem.penalty(early.choice)
    assert reached - early.gap <= least + 1e-8 and least <= reached + 1e-8
    assert "stopped early" in early.method


def test_nothing_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = yolo_head()
    monkeypatch.setattr(solver, "SECONDS", 0.0)
    assert choose(problem, 0.5 * problem.largest_cost) is None


def test_method_tells_the_gap() -> None:
    assert Best((0,), 0.0).method.endswith("optimal")
    assert "up to 1.01% more of the metric" in Best((0,), 0.01).method


def test_sample_holds_both_ends() -> None:
    front = pareto_front(by_hand())
    assert sample_front(front, 12) == [0, 1, 2] and sample_front(front, 2) == [0, 2]
