"""Active measurement: only the points of a sensitivity analysis that a budget needs.

Solve with what is known, measure around the solution, and again, until the points around it are
all measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from slim_det.planning.budget.partial_curves import Losses, PartialCurve

logger = logging.getLogger("slim_det")

Solve = Callable[[Losses], "dict[str, int]"]
"""Losses at every ratio of the grid -> units to remove from each group."""

Measure = Callable[["dict[str, list[float]]"], Losses]
"""Group name -> ratios to measure; gives everything that is measured by then."""


@dataclass(frozen=True)
class Grid:
    """What may be measured.

    Attributes:
        units: Group name -> its units.
        ratios: Of every group, ascending.
        max_ratio: Largest share of units that a plan removes.
    """

    units: Mapping[str, int]
    ratios: tuple[float, ...]
    max_ratio: float = 1.0

    def curves(self, measured: Losses) -> dict[str, PartialCurve]:
        """Every group with its measured points, up to the first ratio that no plan exceeds."""
        below = (0.0, *self.ratios)
        useful = tuple(r for r, before in zip(self.ratios, below) if before < self.max_ratio)
        return {
            name: PartialCurve(
                units,
                useful,
                {r: loss for r, loss in measured.get(name, {}).items() if r in useful},
            )
            for name, units in self.units.items()
        }


def measure_needed(grid: Grid, measured: Losses, solve: Solve, measure: Measure) -> Losses:
    """Measure one point of each group, then around the solution until nothing is missing there.

    Args:
        grid: What may be measured.
        measured: What is known already.
        solve: Solves the budget.
        measure: Measures points.

    Returns:
        Everything that is measured. The solution with `estimated` losses lies between measured
        points in every group, so its predicted loss is that of a complete measurement.
    """
    curves = grid.curves(measured)
    wanted = {name: curve.unmeasured_middle() for name, curve in curves.items()}
    while True:
        wanted = {name: ratios for name, ratios in wanted.items() if ratios}
        if wanted:
            logger.info("measuring %d points", sum(map(len, wanted.values())))
            measured = measure(wanted)
        curves = grid.curves(measured)
        removed = solve(estimated(curves))
        wanted = {name: curve.unmeasured_around(removed[name]) for name, curve in curves.items()}
        if not any(wanted.values()):
            return measured


def estimated(curves: Mapping[str, PartialCurve]) -> Losses:
    """`PartialCurve.estimated` of every group."""
    return {name: curve.estimated() for name, curve in curves.items()}


@dataclass(frozen=True)
class Coverage:
    """How much of a grid is measured, and what the rest could change.

    Attributes:
        measured: Number of measured points.
        points: Number of points of the grid.
        low: Share of the metric that the plan keeps, at least.
        high: Share that the best plan could keep according to complete measurements, at most.
    """

    measured: int
    points: int
    low: float
    high: float


def coverage(
    grid: Grid,
    measured: Losses,
    removed: Mapping[str, int],
    solve: Solve,
    retained: Callable[[Losses, Mapping[str, int]], float],
) -> Coverage:
    """The range of what complete measurements predict, if losses do not fall with the ratio.

    Args:
        grid: What may be measured.
        measured: What is.
        removed: The plan: units to remove from each group.
        solve: Solves the budget; the upper end is as exact as it is.
        retained: Predicted share of the metric that a plan keeps, by losses at every ratio.
    """
    curves = grid.curves(measured)
    least = {name: curve.least() for name, curve in curves.items()}
    most = {name: curve.most() for name, curve in curves.items()}
    low = retained(most, removed)
    best = retained(least, solve(least))
    return Coverage(
        measured=sum(len(row) for row in measured.values()),
        points=len(grid.units) * len(grid.ratios),
        low=low,
        high=max(best, retained(least, removed)),
    )
