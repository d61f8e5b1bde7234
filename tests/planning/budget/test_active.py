"""Active measurement of made-up curves, against complete measurement of the same curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.planning.budget.active import Grid, coverage, estimated, measure_needed
from slim_det.planning.budget.curves import losses_at, penalties_of
from slim_det.planning.budget.partial_curves import Losses

UNITS = 10
TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
COUNTS = range(UNITS)


def grid_of(names: str, max_ratio: float = 1.0) -> Grid:
    return Grid(dict.fromkeys(names, UNITS), TENTHS, max_ratio)


def retained(losses: Losses, removed: Mapping[str, int]) -> float:
    """Ten units and nine ratios: every number of units is a point of the grid."""
    penalties = (penalties_of(losses_at(losses[n], UNITS, [c]))[0] for n, c in removed.items())
    return math.exp(-sum(penalties))


def best_for(
    costs: Mapping[str, int], budget: int, most: int = UNITS - 1
) -> Callable[[Losses], dict[str, int]]:
    """Tries every plan that removes enough; the first of equal ones."""
    plans = [
        dict(zip(costs, counts))
        for counts in itertools.product(range(most + 1), repeat=len(costs))
        if sum(cost * count for cost, count in zip(costs.values(), counts)) >= budget
    ]

    def solve(losses: Losses) -> dict[str, int]:
        tables = {n: penalties_of(losses_at(row, UNITS, COUNTS)) for n, row in losses.items()}
        return min(plans, key=lambda plan: sum(tables[n][c] for n, c in plan.items()))

    return solve


class Detector:
    """Answers every point from known curves, and counts them."""

    def __init__(self, truth: Losses) -> None:
        self.truth, self.measured, self.rounds = truth, dict[str, dict[float, float]](), 0

    def measure(self, points: dict[str, list[float]]) -> Losses:
        self.rounds += 1
        for name, ratios in points.items():
            for ratio in ratios:
                row = self.measured.setdefault(name, {})
                assert ratio not in row, "measured twice"
                row[ratio] = self.truth[name][ratio]
        return {name: dict(row) for name, row in self.measured.items()}

    @property
    def points(self) -> int:
        return sum(map(len, self.measured.values()))


def powers(**curves: tuple[float, float]) -> Losses:
    """Group -> (loss at 1, exponent)."""
    return {name: {r: a * r**b for r in TENTHS} for name, (a, b) in curves.items()}


CONVEX = powers(a=(0.9, 3.0), b=(0.3, 2.0), c=(0.05, 1.5), d=(0.8, 4.0))
COSTS = {"a": 3, "b": 2, "c": 4, "d": 3}


@pytest.mark.parametrize("budget", [20, 40, 60, 80])
def test_plan_of_a_complete_measurement(budget: int) -> None:
    """Convex curves: the plan is the same, from less than two thirds of the points."""
    grid, solve, detector = grid_of("abcd"), best_for(COSTS, budget), Detector(CONVEX)
    measured = measure_needed(grid, {}, solve, detector.measure)
    plan = solve(estimated(grid.curves(measured)))
    assert plan == solve(CONVEX)
    assert retained(estimated(grid.curves(measured)), plan) == pytest.approx(retained(CONVEX, plan))
    assert measured == detector.measured and detector.points <= 24
    seen = coverage(grid, measured, plan, solve, retained)
    assert (seen.measured, seen.points) == (detector.points, 36)
    assert seen.low == pytest.approx(retained(CONVEX, plan)) and seen.low <= seen.high


def test_first_round_is_the_middle_and_the_last_finds_nothing_new() -> None:
    """By hand: one group whose budget needs seven units; 0.5, then 0.6 to 0.8."""
    asked = []
    detector = Detector(powers(a=(0.5, 1.0)))

    def measure(points: dict[str, list[float]]) -> Losses:
        asked.append(points)
        return detector.measure(points)

    measure_needed(grid_of("a"), {}, best_for({"a": 1}, 7), measure)
    assert asked == [{"a": [0.5]}, {"a": [0.6, 0.7, 0.8]}]


def test_what_is_known_is_not_measured_again() -> None:
    """From any subset of the points of a run, the same plan; from all of them, no measurement."""
    grid, solve = grid_of("abcd"), best_for(COSTS, 40)
    complete = Detector(CONVEX)
    measured = measure_needed(grid, {}, solve, complete.measure)

    def refuse(points: dict[str, list[float]]) -> Losses:
        raise AssertionError(points)

    assert measure_needed(grid, measured, solve, refuse) == measured
    killed = Detector(CONVEX)
    killed.measured = {"a": {0.5: CONVEX["a"][0.5]}, "c": dict(measured["c"])}
    continued = measure_needed(grid, killed.measured, solve, killed.measure)
    assert solve(estimated(grid.curves(continued))) == solve(CONVEX)


def test_nothing_is_measured_that_no_plan_can_use() -> None:
    """At most 65 %: the curve ends at 0.7, between which and 0.6 the limit lies."""
    detector = Detector(powers(a=(0.5, 1.0), b=(0.5, 1.0)))
    solve = best_for({"a": 1, "b": 1}, 12, most=6)
    measure_needed(grid_of("ab", 0.65), {}, solve, detector.measure)
    assert {max(row) for row in detector.measured.values()} == {0.7}


def test_range_by_hand() -> None:
    """Two groups at 0.5 of nothing else: four units of each cost the same.

    A plan of four and four loses at most what 0.5 loses, 0.2 and 0.4; another one could lose 0.
    """
    measured = {"a": {0.5: 0.2}, "b": {0.5: 0.4}}
    solve = best_for({"a": 1, "b": 1}, 8)
    seen = coverage(grid_of("ab"), measured, {"a": 4, "b": 4}, solve, retained)
    assert (seen.measured, seen.points) == (2, 18)
    assert seen.low == pytest.approx(0.8 * 0.6) and seen.high == pytest.approx(1.0)


def growing(loss: st.SearchStrategy[float]) -> st.SearchStrategy[Losses]:
    row = st.lists(loss, min_size=9, max_size=9).map(sorted).map(lambda v: dict(zip(TENTHS, v)))
    return st.fixed_dictionaries({name: row for name in "abc"})


@settings(max_examples=60, deadline=None)
@given(growing(st.floats(0.0, 0.99)), st.integers(1, 70))
def test_range_contains_the_truth(truth: Losses, budget: int) -> None:
    """Any curves that do not fall: the plan is predicted exactly, the best one lies in the range.

    Another plan may be written instead; its points need not be measured.
    """
    grid, solve = grid_of("abc"), best_for({"a": 3, "b": 2, "c": 4}, budget)
    detector = Detector(truth)
    measured = measure_needed(grid, {}, solve, detector.measure)
    plan = solve(estimated(grid.curves(measured)))
    seen = coverage(grid, measured, plan, solve, retained)
    best = retained(truth, solve(truth))
    assert seen.low == pytest.approx(retained(truth, plan))
    assert seen.low <= best * (1 + 1e-9) and best <= seen.high * (1 + 1e-9)
    other = {"a": 9, "b": 4, "c": 8}
    seen = coverage(grid, measured, other, solve, retained)
    assert seen.low <= retained(truth, other) * (1 + 1e-9)
    assert best <= seen.high * (1 + 1e-9)
