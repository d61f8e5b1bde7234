"""The front against every combination, and on problems that can be solved by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.planning.budget import pareto
from slim_det.planning.budget.pareto import elimination_order, pareto_front
from slim_det.planning.budget.problem import Factor, Front, Problem
from tests.planning.budget.problems import SCOPES, by_hand, every_choice, problem_of, yolo_head


def assert_reachable(problem: Problem, front: Front) -> None:
    """Each point costs and loses what some choice does."""
    every = np.array([(cost, penalty) for cost, penalty, _ in every_choice(problem)])
    for point in zip(front.costs, front.penalties):
        assert np.isclose(every, point, rtol=1e-9, atol=1e-9).all(axis=1).any()


def least_penalty(front: Front, budget: float) -> float:
    return float(front.penalties[front.costs <= budget * (1 + 1e-12)].min(initial=np.inf))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6), st.booleans())
def test_every_budget_gets_the_optimum(name: str, seed: int, integers: bool) -> None:
    problem = problem_of(SCOPES[name], seed, integers)
    every = every_choice(problem)
    front = pareto_front(problem)
    assert_reachable(problem, front)
    costs = sorted({cost for cost, _, _ in every})
    assert front.costs[0] == pytest.approx(costs[0])
    for budget in costs:
        best = min(penalty for cost, penalty, _ in every if cost <= budget)
        assert least_penalty(front, budget) == pytest.approx(best, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_no_point_of_the_front_beats_another(name: str, seed: int) -> None:
    front = pareto_front(problem_of(SCOPES[name], seed, integers=True))
    assert (np.diff(front.costs) > 0).all() and (np.diff(front.penalties) < 0).all()


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(SCOPES)), st.integers(0, 10**6))
def test_buckets_lose_little_and_never_the_least_cost(name: str, seed: int) -> None:
    """Thinned from the first table on, a budget is met with what the next bucket allows."""
    problem = problem_of(SCOPES[name], seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "EXACT_POINTS", 0)
        front = pareto_front(problem)
    assert_reachable(problem, front)
    every = every_choice(problem)
    assert front.costs[0] == pytest.approx(min(cost for cost, _, _ in every))
    slack = pareto.BUCKET_SHARE * problem.largest_cost * 2 * len(problem.penalties)
    for budget in sorted({cost for cost, _, _ in every}):
        best = min((p for c, p, _ in every if c <= budget - slack), default=np.inf)
        assert least_penalty(front, budget) <= best + 1e-9


def test_nothing_to_choose() -> None:
    """No variable at all, and variables with one option each."""
    front = pareto_front(Problem((), (), 5.0))
    assert front.costs.tolist() == [5.0] and front.penalties.tolist() == [0.0]
    single = Problem((np.zeros(1), np.zeros(1)), (Factor((0, 1), np.full((1, 1), 3.0)),), 1.0)
    assert pareto_front(single).costs.tolist() == [4.0]


def test_costs_multiply() -> None:
    """Width 1 of the second beats width 2 of the first, which a sum of savings would miss."""
    front = pareto_front(by_hand())
    assert front.costs.tolist() == [2.0, 4.0, 16.0]
    assert front.penalties.tolist() == pytest.approx([0.5, 0.2, 0.0])


def test_too_wide_graphs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many cells, and too many points on the way."""
    problem = yolo_head()
    monkeypatch.setattr(pareto, "MAX_PAIRS", 1000)
    with pytest.raises(pareto.TooLarge):
        pareto_front(problem)
    monkeypatch.setattr(pareto, "MAX_CELLS", 10)
    with pytest.raises(pareto.TooLarge):
        elimination_order(problem)


def test_fill_is_avoided() -> None:
    """The hub of a star is eliminated last, or next to last."""
    star = Problem(
        tuple(np.zeros(3) for _ in range(5)),
        tuple(Factor((0, v), np.ones((3, 3))) for v in range(1, 5)),
    )
    assert elimination_order(star).index(0) >= 3


def test_size_of_a_yolo_head() -> None:
    """Three chains of six groups with 19 options each take a few seconds at most."""
    problem = yolo_head()
    start = time.process_time()
    front = pareto_front(problem)
    assert time.process_time() - start < 10.0
    assert len(front.costs) > 500
    gaps = np.diff(front.costs) / problem.largest_cost
    assert np.median(gaps) < 0.001
