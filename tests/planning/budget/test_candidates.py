"""Candidates for one budget: each meets it, equal ones are one, and the best measured one wins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.errors import ConfigError
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS
from slim_det.planning.budget.candidates import MOST, Candidate, candidates
from slim_det.planning.budget.costs import TracedModel
from slim_det.planning.budget.judge import Judged, best_of
from slim_det.planning.budget.options import Limits
from slim_det.planning.budget.plan import check_pruner, checked_ratios
from slim_det.planning.budget.prepare import make_search
from slim_det.planning.budget.search import BudgetSearch, Solution
from slim_det.planning.budget.targets import Target
from tests.planning.budget.losses import result_of
from tests.planning.budget.models import traced_model
from tests.support import restored_config

TENTHS = [tenth / 10 for tenth in range(1, 10)]
BUDGET = Target("macs", 0.3)


@pytest.fixture(scope="module")
def traced(tiny: Path, ppdet_registered: None) -> TracedModel:
    with restored_config():
        return traced_model(tiny)


def search_of(traced: TracedModel, limits: Limits | None = None) -> BudgetSearch:
    """Growing losses of the 18 layers of the head, at nine ratios."""
    rng = np.random.default_rng(0)
    losses = {
        name: {r: float(a * r**b) for r in TENTHS}
        for name, a, b in zip(YOLO_HEAD_LAYERS, rng.uniform(0.1, 1, 18), rng.uniform(1, 4, 18))
    }
    own = fingerprint(type(traced.model).__name__, tensor_shapes(traced.model))
    return make_search(traced, result_of(losses, own), "losses", limits or Limits())


@pytest.fixture(scope="module")
def search(traced: TracedModel) -> BudgetSearch:
    return search_of(traced)


@pytest.fixture(scope="module")
def found(search: BudgetSearch) -> dict[str, Solution]:
    """Every candidate."""
    return {one.name: one.solution for one in candidates(search, BUDGET, MOST)}


def shares(search: BudgetSearch, removed: Mapping[str, int]) -> np.ndarray:
    """Removed share of each group."""
    return np.array([removed[g.name] / len(g.units) for g in search.groups])


def test_every_candidate_meets_the_budget(
    traced: TracedModel, search: BudgetSearch, found: dict[str, Solution]
) -> None:
    """Within a hundredth; the solver's plan is the best predicted one, and alone if one counts."""
    assert list(found) == ["solver", "uniform", "spread", "between"]
    pruner = Pruner(pruned_ratios=0.5)
    for solution in found.values():
        assert 0.3 <= 1.0 - solution.after["macs"] / solution.before["macs"] <= 0.31
        assert solution.after == search.costs(solution.removed)
        assert solution.retained <= found["solver"].retained * (1 + 1e-6)
        ratios = checked_ratios(traced, solution, search.losses, pruner)
        check_pruner(traced, solution, Pruner(pruned_ratios=ratios))
    (alone,) = candidates(search, BUDGET, 1)
    assert alone.solution == found["solver"]


def test_uniform_is_one_ratio_and_just_enough(search: BudgetSearch) -> None:
    """Shares differ by rounding only; with one unit less in every group the budget is missed."""
    removed = search.scaled(BUDGET, {group.name: 1.0 for group in search.groups})
    assert removed is not None
    found = shares(search, removed)
    units = np.array([len(group.units) for group in search.groups])
    assert (np.abs(found - np.median(found)) <= 1.0 / units).all()
    budget = 0.7 * search.costs(dict.fromkeys(removed, 0))["macs"]
    assert search.costs(removed)["macs"] <= budget
    assert search.costs({name: count - 1 for name, count in removed.items()})["macs"] > budget


def test_uniform_within_the_limits(traced: TracedModel) -> None:
    """Multiples of 8 stay, no group is cut by more than a half, and the others make up for it."""
    search = search_of(traced, Limits(align=8, max_ratio=0.5))
    removed = search.scaled(BUDGET, {group.name: 1.0 for group in search.groups})
    assert removed is not None and (shares(search, removed) <= 0.5).all()
    assert all((len(g.units) - removed[g.name]) % 8 == 0 for g in search.groups)
    assert search.scaled(Target("macs", 0.8), {g.name: 1.0 for g in search.groups}) is None


def test_proportions(search: BudgetSearch) -> None:
    """One group twice as much as the others; another one not at all."""
    first, second = YOLO_HEAD_LAYERS[:2]
    wanted = {g.name: 1.0 for g in search.groups} | {first: 2.0, second: 0.0}
    removed = search.scaled(Target("macs", 0.1), wanted)
    assert removed is not None
    found = dict(zip(removed, shares(search, removed)))
    assert found[second] == 0.0
    assert found[first] == pytest.approx(2 * found[YOLO_HEAD_LAYERS[2]], abs=0.02)


def test_between_lies_between(search: BudgetSearch, found: dict[str, Solution]) -> None:
    """The proportions of the mean of both plans, to one unit of each group."""
    solver, uniform, between = (
        shares(search, found[n].removed) for n in ("solver", "uniform", "between")
    )
    mean = (solver + uniform) / 2
    units = np.array([len(group.units) for group in search.groups])
    assert (np.abs(between - np.median(between / mean) * mean) * units <= 1.0).all()


def test_spread_has_no_layer_that_loses_much(
    search: BudgetSearch, found: dict[str, Solution]
) -> None:
    """Its largest loss of a single layer is smaller, and its squares are."""

    def penalties(solution: Solution) -> np.ndarray:
        options = [[solution.removed[g.name]] for g in search.groups]
        return np.array([own[0] for own in search._penalties(options)])

    solver, spread = penalties(found["solver"]), penalties(found["spread"])
    assert spread.max() < solver.max() and (spread**2).sum() < (solver**2).sum()
    assert spread.sum() > solver.sum()


@dataclass
class Search:
    """Stands for a search whose plans are given."""

    solver: dict[str, int]
    scaled_plans: list[dict[str, int] | None]
    spread: dict[str, int]
    groups: list[Any] = field(default_factory=list)

    def solve(self, target: Target) -> Solution:
        return Solution(self.solver, 0.9, {"macs": 8.0}, {"macs": 4.0}, "macs", (), (), "solved")

    def scaled(self, target: Target, shares: Mapping[str, float]) -> dict[str, int] | None:
        return self.scaled_plans.pop(0)

    def removed(self, target: Target, power: float) -> tuple[dict[str, int], str]:
        return self.spread, "solved"

    def retained(self, removed: Mapping[str, int]) -> float:
        return 1.0 - 0.1 * sum(removed.values())

    def costs(self, removed: Mapping[str, int]) -> dict[str, float]:
        return {"macs": 8.0 - sum(removed.values())}


def names_of(search: Any, count: int = 3, target: Target = BUDGET) -> list[str]:
    return [one.name for one in candidates(search, target, count)]


def test_equal_plans_are_one(caplog: pytest.LogCaptureFixture) -> None:
    """The first keeps its place, its prediction and a name for each way it was made."""
    one, other = {"a": 4, "b": 0}, {"a": 2, "b": 2}
    assert names_of(Search(one, [dict(one)], other)) == ["solver = uniform", "spread"]
    assert names_of(Search(one, [dict(other)], dict(other))) == ["solver", "uniform = spread"]
    assert names_of(Search(one, [dict(one)], dict(one))) == ["solver = uniform = spread"]
    assert not caplog.records


def test_a_plan_that_misses_the_target_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    search = Search({"a": 4}, [None], {"a": 3})
    assert names_of(search) == ["solver", "spread"]
    assert "candidate 'uniform' does not meet the target" in caplog.text


def test_each_loss_target_has_one_plan() -> None:
    assert names_of(Search({"a": 4}, [], {}), target=Target("loss", 0.1)) == ["solver"]


def test_unreachable_targets_stay_errors(search: BudgetSearch) -> None:
    with pytest.raises(ConfigError, match="the nearest is --macs "):
        candidates(search, Target("macs", 0.99), 3)
    with pytest.raises(ConfigError, match="the nearest is --macs "):
        search.require_reachable(Target("macs", 0.99))
    search.require_reachable(BUDGET)


def judged(name: str, ap: float) -> Judged:
    solution = Search({"a": 4}, [], {}).solve(BUDGET)
    return Judged(Candidate(name, solution), {"a": 0.5}, ap)


def test_best_measured_is_chosen() -> None:
    """Predictions do not count; of equal ones it is the first."""
    low, high, tie = judged("solver", 0.3), judged("uniform", 0.7), judged("spread", 0.7)
    assert best_of([low, high, tie]) is high and best_of([low, tie, high]) is tie
    assert best_of([low]) is low
