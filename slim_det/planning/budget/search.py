"""From measured losses and a target to the units to remove from each group."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from slim_det.planning.budget.solver import ROUNDING, choose, sample_front, solve_front
from slim_det.planning.budget.targets import Target

logger = logging.getLogger("slim_det")

OVERSHOOT = 0.01
"""A plan stays below its budget by at most this share of the unpruned cost, if possible."""

NEAR_ENOUGH = 0.001
"""Options are refined until the cost is below the budget by at most this share."""

MAX_ROUNDS = 4
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

    def solve(self, target: Target) -> Solution:
        """Meet a target.

        Raises:
            ConfigError: No plan meets it, or the plan that does cuts nothing.
        """
        resource = target.resource
        before = self._costs([0] * len(self.groups))
        problem = self._problem(self._coarse, resource)
        front = solve_front(problem)
        if target.kind == "loss":
            removed = self._at_loss(target.value)
            method = "each layer on its own, by the loss of the layer"
        else:
            removed, method = self._within(target, problem, front, before[resource])
        if not any(removed):
            raise ConfigError(
                f"--{target.kind} {target.value:g}: nothing is cut at this target, the model "
                "meets it as it is; expected a stricter one"
            )
        points = [self._row(front, p, before[resource]) for p in range(len(front.costs))]
        return Solution(
            removed={g.name: r for g, r in zip(self.groups, removed)},
            retained=retained(sum(p[0] for p in self._penalties([[r] for r in removed]))),
            before=before,
            after=self._costs(removed),
            resource=resource,
            front=tuple(points),
            rows=tuple(points[p] for p in sample_front(front, FRONT_ROWS)),
            method=method,
        )

    def _at_loss(self, threshold: float) -> list[int]:
        """PaddleSlim's rule for each group; alignment never removes more than it says."""
        removed = []
        for group, allowed in zip(self.groups, self._allowed):
            ratio = ratio_at_loss(self.losses[group.name], threshold)
            removed.append(largest_within(allowed, units_removed(len(group.units), ratio)))
        return removed

    def _within(
        self, target: Target, problem: Problem, front: Front, before: float
    ) -> tuple[list[int], str]:
        """Solve on coarse options, then on finer ones around the solution."""
        budget = target.budget(before)
        options = self._coarse
        if front.costs[0] > budget * (1.0 + ROUNDING):
            raise target.unreachable(before, float(front.costs[0]))
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
            problem = self._problem(finer, target.resource)
            refined = choose(problem, budget, OVERSHOOT * before)
            if refined is None:  # the time is up; the chosen options are among the finer ones
                break
            options, best = finer, refined
        return _pick(options, best.choice), best.method

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
