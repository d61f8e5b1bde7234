"""The problem of a budget: one option per variable, penalties that add up, costs in factors.

A variable is a group of channels, an option is how much of it is cut, a factor is the cost of one
weight for every combination of options of the groups that touch it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np

Choice = tuple[int, ...]
"""The option of each variable, by index."""


@dataclass(frozen=True)
class Factor:
    """A cost that depends on a few variables together.

    Attributes:
        scope: Variables, ascending.
        costs: float64, for each variable of ``scope`` an axis of its options.
    """

    scope: tuple[int, ...]
    costs: np.ndarray


@dataclass(frozen=True)
class Problem:
    """Minimise the sum of penalties while the sum of factors stays within a budget.

    Attributes:
        penalties: Variable -> penalty of each of its options, float64 [options].
        factors: Costs of the options; one factor per scope.
        constant: Cost that no option changes.
    """

    penalties: tuple[np.ndarray, ...]
    factors: tuple[Factor, ...]
    constant: float = 0.0

    def cost(self, choice: Sequence[int]) -> float:
        """The cost of one choice."""
        costs = (f.costs[tuple(choice[v] for v in f.scope)] for f in self.factors)
        return float(self.constant + sum(costs))

    def penalty(self, choice: Sequence[int]) -> float:
        """The sum of the penalties of one choice."""
        return float(sum(penalty[option] for penalty, option in zip(self.penalties, choice)))

    def restricted(self, options: Sequence[Sequence[int]]) -> Problem:
        """The same problem with some of the options of each variable."""
        factors = (
            Factor(f.scope, f.costs[np.ix_(*(options[v] for v in f.scope))]) for f in self.factors
        )
        penalties = tuple(p[list(own)] for p, own in zip(self.penalties, options))
        return Problem(penalties, tuple(factors), self.constant)

    @property
    def largest_cost(self) -> float:
        """An upper bound of the cost: the sum of the largest cost of every factor."""
        return float(self.constant + sum(factor.costs.max() for factor in self.factors))


@dataclass(frozen=True)
class Front:
    """Points of which none is better than another in both cost and penalty.

    Attributes:
        costs: float64 [points], ascending.
        penalties: float64 [points], descending.
    """

    costs: np.ndarray
    penalties: np.ndarray


def merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Add up factors of equal scope; their total is unchanged."""
    sums: dict[tuple[int, ...], np.ndarray] = {}
    for factor in chain.from_iterable(map(_pairwise, factors)):
        known = sums.get(factor.scope)
        sums[factor.scope] = factor.costs if known is None else known + factor.costs
    return tuple(Factor(scope, costs) for scope, costs in sums.items())


def _pairwise(factor: Factor) -> list[Factor]:
    """A factor of three or more variables as a sum over pairs of them, if it is one.

    After a concatenation a weight costs (a + b) x c, which is a x c + b x c.
    """
    count = len(factor.scope)
    if count < 3:
        return [factor]

    def part(*axes: int) -> np.ndarray:
        """The costs along some axes, the first option everywhere else."""
        kept = (slice(None) if axis in axes else slice(1) for axis in range(count))
        return factor.costs[tuple(kept)]

    single: dict[tuple[int, ...], np.ndarray] = {
        (axis,): part(axis) - part() for axis in range(count)
    }
    pairs: dict[tuple[int, ...], np.ndarray] = {
        (a, b): part(a, b) - part() - single[a,] - single[b,]
        for a, b in combinations(range(count), 2)
    }
    single[0,] = single[0,] + part()
    parts = {**single, **pairs}
    difference = np.abs(factor.costs - sum(parts.values())).max()
    if difference > 1e-12 * np.abs(factor.costs).max():
        return [factor]
    return [
        Factor(tuple(factor.scope[a] for a in axes), costs.squeeze(missing))
        for axes, costs in parts.items()
        if costs.any()
        for missing in [tuple(a for a in range(count) if a not in axes)]
    ]
