"""Costs of choices, and factors that are added up or taken apart without changing them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from slim_det.planning.budget.problem import Factor, Problem, merged
from tests.planning.budget.problems import by_hand


def test_cost_and_penalty_of_a_choice() -> None:
    problem = by_hand()
    assert [problem.cost(c) for c in ((0, 0), (1, 0), (0, 1), (1, 1))] == [16, 8, 4, 2]
    assert problem.penalty((1, 1)) == pytest.approx(0.5)
    assert problem.largest_cost == 16


def test_equal_scopes_are_added_up() -> None:
    (factor,) = merged([Factor((0,), np.array([1.0, 2.0])), Factor((0,), np.array([3.0, 5.0]))])
    assert factor.scope == (0,) and factor.costs.tolist() == [4.0, 7.0]


def test_a_concatenation_is_a_sum_over_pairs() -> None:
    """(a + b + 2) x c: no factor holds a and b together, every cost stays."""
    a, b, c = np.array([5.0, 3.0]), np.array([7.0, 4.0, 1.0]), np.array([8.0, 2.0])
    costs = (a[:, None, None] + b[:, None] + 2.0) * c
    factors = merged([Factor((1, 3, 4), costs)])
    assert {f.scope for f in factors if len(f.scope) > 1} == {(1, 4), (3, 4)}
    unused = np.zeros(1)
    problem = Problem((unused, np.zeros(2), unused, np.zeros(3), np.zeros(2)), factors)
    for i, j, k in itertools.product(range(2), range(3), range(2)):
        assert problem.cost((0, i, 0, j, k)) == costs[i, j, k]


def test_a_product_of_three_stays_one_factor() -> None:
    costs = np.einsum("i,j,k->ijk", [4.0, 1.0], [3.0, 2.0], [5.0, 1.0])
    (factor,) = merged([Factor((0, 1, 2), costs)])
    assert factor.scope == (0, 1, 2) and (factor.costs == costs).all()


def test_restricted_to_some_options() -> None:
    problem = by_hand().restricted([[1], [0, 1]])
    assert [problem.cost((0, 0)), problem.cost((0, 1))] == [8, 2]
    assert problem.penalty((0, 1)) == pytest.approx(0.5)
