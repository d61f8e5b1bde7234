"""The problem of a budget: one option a variable, penalties that add up, costs in factors.

Numbers only. A variable is a group of channels, an option is how much of it is cut, a factor is
what one weight costs for every combination of options of the groups that touch it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Choice = tuple[int, ...]
"""The option of each variable, by index."""


@dataclass(frozen=True)
class Factor:
    """A cost that depends on a few variables together.

    Attributes:
        scope: Variables, ascending.
        costs: float64, one axis a variable of ``scope``, as long as it has options.
    """

    scope: tuple[int, ...]
    costs: np.ndarray


@dataclass(frozen=True)
class Problem:
    """Minimise the sum of penalties while the sum of factors stays within a budget.

    Attributes:
        penalties: Variable -> penalty of each of its options, float64 [options].
        factors: What the options cost; one factor a scope.
        constant: Cost that no option changes.
    """

    penalties: tuple[np.ndarray, ...]
    factors: tuple[Factor, ...]
    constant: float = 0.0

    def costs(self, choices: Sequence[Sequence[int]]) -> np.ndarray:
        """The true cost of each choice (one option a variable), float64 [choices]."""
        options = np.asarray(choices, np.int64).reshape(len(choices), len(self.penalties)).T
        total = np.full(len(choices), self.constant)
        for factor in self.factors:
            total += factor.costs[tuple(options[v] for v in factor.scope)]
        return total

    def losses(self, choices: Sequence[Sequence[int]]) -> np.ndarray:
        """The sum of the penalties of each choice, float64 [choices]."""
        options = np.asarray(choices, np.int64).reshape(len(choices), len(self.penalties)).T
        total = np.zeros(len(choices))
        for penalty, option in zip(self.penalties, options):
            total += penalty[option]
        return total

    def cost(self, choice: Sequence[int]) -> float:
        """The true cost of one choice."""
        return float(self.costs([choice])[0])

    def penalty(self, choice: Sequence[int]) -> float:
        """The sum of the penalties of one choice."""
        return float(self.losses([choice])[0])

    @property
    def largest_cost(self) -> float:
        """An upper bound of the cost, reached where every factor is at its largest."""
        return float(self.constant + sum(factor.costs.max() for factor in self.factors))


@dataclass(frozen=True)
class Front:
    """Points of which none is better than another in both cost and penalty.

    Attributes:
        costs: float64 [points], ascending.
        penalties: float64 [points]; descending unless dominated points were asked for.
        choice: Point -> the option of each variable.
        method: How it was found, for people.
    """

    costs: np.ndarray
    penalties: np.ndarray
    choice: Callable[[int], Choice]
    method: str


def merged(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """Add up factors of equal scope; what they cost together is unchanged."""
    sums: dict[tuple[int, ...], np.ndarray] = {}
    for factor in factors:
        known = sums.get(factor.scope)
        sums[factor.scope] = factor.costs if known is None else known + factor.costs
    return tuple(Factor(scope, costs) for scope, costs in sums.items())
