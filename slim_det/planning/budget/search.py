"""From measured losses and a target to the units to remove from each group."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slim_det.compress.prune.groups import Group
from slim_det.compress.prune.ratios import units_removed
from slim_det.core.errors import ConfigError
from slim_det.planning.budget.costs import FactorBuilder, Rule
from slim_det.planning.budget.curves import losses_at, penalties_of, ratio_at_loss, retained
from slim_det.planning.budget.options import (
    Limits,
    allowed_removals,
    coarse_options,
    fine_options,
    largest_within,
)
from slim_det.planning.budget.problem import Choice, Front, Problem
from slim_det.planning.budget.solver import (
    ROUNDING,
    choose,
    least_cost,
    sample_front,
    solve_front,
)
from slim_det.planning.budget.targets import Target

logger = logging.getLogger("slim_det")

OVERSHOOT = 0.01
"""A plan stays below its budget by at most this share of the unpruned cost, if possible."""

NEAR_ENOUGH = 0.001
"""Options are refined until the cost is below the budget by at most this share."""

MAX_ROUNDS = 4

HALVINGS = 40
"""Of the interval in which `BudgetSearch.scaled` looks for its factor."""

FRONT_ROWS = 12


@dataclass(frozen=True)
class FrontRow:
    """One budget and the best that is predicted within it.

    Attributes:
        cost: In the unit of the resource.
        removed: Share of the unpruned cost that is removed.
        retained: Predicted metric as a share of the unpruned model's.
    """

    cost: float
    removed: float
    retained: float


@dataclass(frozen=True)
class Solution:
    """How many units each group loses, and the effect.

    Attributes:
        removed: Group -> units removed, 0 included.
        retained: Predicted metric as a share of the unpruned model's.
        before: Resource -> cost of the unpruned model.
        after: Resource -> cost of the pruned one.
        resource: The cost in ``front`` and ``rows``.
        front: All points, cheapest first.
        rows: About a dozen of them, for a table.
        method: How it was solved.
    """

    removed: dict[str, int]
    retained: float
    before: dict[str, float]
    after: dict[str, float]
    resource: str
    front: tuple[FrontRow, ...]
    rows: tuple[FrontRow, ...]
    method: str


@dataclass
class BudgetSearch:
    """Solves targets for one model from one set of losses; each takes seconds.

    Attributes:
        groups: The groups that may be cut, in execution order.
        losses: Group name -> ratio -> relative loss, as measured.
        builder: Builds the costs of any options of ``groups``.
        rules: Resource (``macs``, ``params``, ``latency_ms``) -> its counting rule.
        limits: Of every group.
        constants: Resource -> cost that is not in any parameter.
    """

    groups: Sequence[Group]
    losses: Mapping[str, Mapping[float, float]]
    builder: FactorBuilder
    rules: Mapping[str, Rule]
    limits: Limits
    constants: Mapping[str, float]

    def __post_init__(self) -> None:
        self._allowed = [allowed_removals(g, self.losses[g.name], self.limits) for g in self.groups]
        self._coarse = [
            coarse_options(allowed, len(g.units), self.losses[g.name])
            for g, allowed in zip(self.groups, self._allowed)
        ]
        self._coarse_problems: dict[str, Problem] = {}

    def solve(self, target: Target) -> Solution:
        """Meet a target.

        Raises:
            ConfigError: No plan meets it, or the plan that does cuts nothing.
        """
        resource = target.resource
        before = self._costs([0] * len(self.groups))
        front = solve_front(self._coarse_problem(resource))
        if target.kind != "loss":
            _require_reachable(target, before[resource], float(front.costs[0]))
        removed, method = self.removed(target)
        if not any(removed.values()):
            raise ConfigError(
                f"--{target.kind} {target.value:g}: nothing is cut at this target, the model "
                "meets it as it is; expected a stricter one"
            )
        points = [self._row(front, p, before[resource]) for p in range(len(front.costs))]
        return Solution(
            removed=removed,
            retained=self.retained(removed),
            before=before,
            after=self.costs(removed),
            resource=resource,
            front=tuple(points),
            rows=tuple(points[p] for p in sample_front(front, FRONT_ROWS)),
            method=method,
        )

    def require_reachable(self, target: Target) -> None:
        """Make sure that a target other than ``loss`` can be met; the losses do not matter.

        Raises:
            ConfigError: No plan meets it.
        """
        before = self._costs([0] * len(self.groups))[target.resource]
        least = least_cost(self._coarse_problem(target.resource))
        _require_reachable(target, before, least)

    def removed(self, target: Target, power: float = 1.0) -> tuple[dict[str, int], str]:
        """Units to remove from each group to meet a target that can be met, and how it was solved.

        Args:
            target: The budget.
            power: Penalties are raised to it, their sign kept. With more than 1, a few layers that
                lose much count more than many that lose little.

        Raises:
            ConfigError: The solver found nothing in time.
        """
        if target.kind == "loss":
            counts = self._at_loss(target.value)
            method = "each layer on its own, by the loss of the layer"
        else:
            counts, method = self._within(target, power)
        return {g.name: count for g, count in zip(self.groups, counts)}, method

    def scaled(self, target: Target, shares: Mapping[str, float]) -> dict[str, int] | None:
        """Units to remove if all groups are cut in a given proportion, just enough for a budget.

        Args:
            target: The budget, of any kind but ``loss``.
            shares: Group name -> a number of 0 or more, not all 0. The share of its units that is
                removed is this number times one factor for all groups, as far as it is allowed.

        Returns:
            None if even the largest cut of every group costs more than the budget.
        """
        budget = target.budget(self._costs([0] * len(self.groups))[target.resource])

        def counts(factor: float) -> list[int]:
            wanted = (factor * shares[g.name] * len(g.units) for g in self.groups)
            return [
                min(allowed, key=lambda own: (abs(own - number), own))
                for allowed, number in zip(self._allowed, wanted)
            ]

        def fits(factor: float) -> bool:
            return self._costs(counts(factor))[target.resource] <= budget

        low, high = 0.0, 1.0 / min(filter(None, shares.values()))
        if not fits(high):
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2.0
            low, high = (low, middle) if fits(middle) else (middle, high)
        return {g.name: count for g, count in zip(self.groups, counts(high))}

    def retained(self, removed: Mapping[str, int]) -> float:
        """The predicted metric of a plan, as a share of the unpruned model's."""
        options = [[removed[g.name]] for g in self.groups]
        return retained(sum(float(p[0]) for p in self._penalties(options)))

    def costs(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Every resource for one number of removed units per group."""
        return self._costs([removed[g.name] for g in self.groups])

    def _at_loss(self, threshold: float) -> list[int]:
        """PaddleSlim's rule for each group; alignment never removes more than it says."""
        removed = []
        for group, allowed in zip(self.groups, self._allowed):
            ratio = ratio_at_loss(self.losses[group.name], threshold)
            removed.append(largest_within(allowed, units_removed(len(group.units), ratio)))
        return removed

    def _within(self, target: Target, power: float) -> tuple[list[int], str]:
        """Solve on coarse options, then on finer ones around the solution."""
        before = self._costs([0] * len(self.groups))[target.resource]
        budget = target.budget(before)
        options = self._coarse
        problem = _raised(self._coarse_problem(target.resource), power)
        best = choose(problem, budget, OVERSHOOT * before)
        if best is None:
            raise target.not_solved()
        for _ in range(MAX_ROUNDS):
            removed = _pick(options, best.choice)
            near = problem.cost(best.choice) >= budget - NEAR_ENOUGH * before
            finer = [
                fine_options(allowed, coarse, r)
                for allowed, coarse, r in zip(self._allowed, options, removed)
            ]
            if near or finer == options:
                break
            problem = _raised(self._problem(finer, target.resource), power)
            refined = choose(problem, budget, OVERSHOOT * before)
            if refined is None:  # the time is up; the chosen options are among the finer ones
                break
            options, best = finer, refined
        return _pick(options, best.choice), best.method

    def _coarse_problem(self, resource: str) -> Problem:
        """The problem with the coarse options, made once for each resource."""
        if resource not in self._coarse_problems:
            self._coarse_problems[resource] = self._problem(self._coarse, resource)
        return self._coarse_problems[resource]

    def _problem(self, options: Sequence[Sequence[int]], resource: str) -> Problem:
        constant, factors = self.builder.build(options, self.rules[resource])
        constant += self.constants.get(resource, 0.0)
        return Problem(tuple(self._penalties(options)), factors, constant)

    def _penalties(self, options: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return [
            penalties_of(losses_at(self.losses[g.name], len(g.units), removed))
            for g, removed in zip(self.groups, options)
        ]

    def _costs(self, removed: Sequence[int]) -> dict[str, float]:
        """Every resource for one number of removed units per group."""
        options = [[r] for r in removed]
        return {name: self._problem(options, name).cost((0,) * len(options)) for name in self.rules}

    @staticmethod
    def _row(front: Front, point: int, before: float) -> FrontRow:
        cost = float(front.costs[point])
        share = 1.0 - cost / before if before else 0.0
        return FrontRow(cost, share, retained(float(front.penalties[point])))


def _pick(options: Sequence[Sequence[int]], choice: Choice) -> list[int]:
    return [own[option] for own, option in zip(options, choice)]


def _raised(problem: Problem, power: float) -> Problem:
    """The problem with penalties raised to a power, their sign kept."""
    penalties = (np.sign(p) * np.abs(p) ** power for p in problem.penalties)
    return replace(problem, penalties=tuple(penalties))


def _require_reachable(target: Target, before: float, least: float) -> None:
    if least > target.budget(before) * (1.0 + ROUNDING):
        raise target.unreachable(before, least)
