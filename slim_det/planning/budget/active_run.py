"""Runs an active measurement of a detector and keeps its points in a sensitivity file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slim_det.core.errors import SensitivityError
from slim_det.planning.budget.active import (
    Coverage,
    Grid,
    Solve,
    coverage,
    estimated,
    measure_needed,
)
from slim_det.planning.budget.costs import TracedModel
from slim_det.planning.budget.options import Limits
from slim_det.planning.budget.partial_curves import Losses
from slim_det.planning.budget.prepare import check_same_model, make_search
from slim_det.planning.budget.search import BudgetSearch
from slim_det.planning.budget.targets import Target
from slim_det.planning.profile.table import LatencyTable
from slim_det.planning.sensitivity.analysis import Analysis, Settings, open_analysis
from slim_det.planning.sensitivity.candidates import choose_groups
from slim_det.planning.sensitivity.cuts import keep_cuts
from slim_det.planning.sensitivity.merge import merge_results
from slim_det.planning.sensitivity.result import (
    Conditions,
    Request,
    SensitivityResult,
    Sources,
    read_result,
    write_result,
)

RATIOS = tuple(tenth / 10 for tenth in range(1, 10))
"""The grid of a new file."""


@dataclass(frozen=True)
class ActiveMeasurement:
    """What was measured for a target.

    Attributes:
        result: Everything that the file holds.
        search: Solves targets with the losses of the complete grid, estimated where not measured.
        grid: What could be measured.
        target: What it was measured for.
    """

    result: SensitivityResult
    search: BudgetSearch
    grid: Grid
    target: Target

    def coverage(self, removed: Mapping[str, int]) -> Coverage:
        """How much was measured, and what the rest could change for a plan."""

        def retained(losses: Losses, plan: Mapping[str, int]) -> float:
            return replace(self.search, losses=losses).retained(plan)

        solve = _solver(self.search, self.target)
        return coverage(self.grid, self.result.groups, removed, solve, retained)


def _solver(search: BudgetSearch, target: Target) -> Solve:
    """Solves a target with any losses."""
    return lambda losses: replace(search, losses=losses).removed(target)[0]


def measure_for(
    cfg: Any,
    traced: TracedModel,
    path: str | Path,
    target: Target,
    limits: Limits,
    table: LatencyTable | None = None,
    criterion: str = "l1_norm",
    workers: int = 1,
) -> ActiveMeasurement:
    """Measure the points that a target needs.

    The file is written after every round, and a journal beside it holds each finished point, so
    that a run that was killed is continued.

    Args:
        cfg: ppdet's configuration.
        traced: The model with trained weights.
        path: The sensitivity file; if it exists, its groups, grid, criterion and points are kept.
        target: A budget of costs.
        limits: Of every group.
        table: Latencies; needed for a target of latency.
        criterion: Which channels are cut in the measurements of a new file.
        workers: Number of processes.

    Raises:
        ConfigError: The target cannot be met.
        SensitivityError: The file belongs to another model, other data or another configuration.
    """
    old = read_result(path) if Path(path).exists() else None
    if old is not None:
        check_same_model(traced, old, str(path))
        if not old.complete and old.bands is not None:
            raise SensitivityError(
                f"'{path}' has bootstrap bands and is not complete; expected a file without "
                "--bootstrap, or a complete one"
            )
    settings = Settings(
        ratios=old.request.ratios if old else RATIOS,
        params=old.request.group_order if old else None,
        criterion=old.criterion if old else criterion,
        num_images=old.conditions.num_images if old else None,
        workers=workers,
    )
    search = _search(traced, settings, str(path), limits, table)
    search.require_reachable(target)
    units = {group.name: len(group.units) for group in search.groups}
    grid = Grid(units, settings.ratios, limits.max_ratio)
    if old is not None and old.complete:
        result = old
    else:
        result = _measured(cfg, traced, path, old, settings, grid, search, target)
    losses = estimated(grid.curves(result.groups))
    return ActiveMeasurement(result, replace(search, losses=losses), grid, target)


def _search(
    traced: TracedModel, settings: Settings, path: str, limits: Limits, table: LatencyTable | None
) -> BudgetSearch:
    """A search over the complete grid, whose losses are not known yet."""
    names = choose_groups(traced.model, traced.groups, settings.params)
    blank = SensitivityResult(
        Conditions("unknown", None, None, settings.criterion),
        Sources(),
        Request(tuple(names), settings.ratios),
        groups={name: dict.fromkeys(settings.ratios, 0.0) for name in names},
        ap={},
    )
    return make_search(traced, blank, path, limits, table)


def _measured(
    cfg: Any,
    traced: TracedModel,
    path: str | Path,
    old: SensitivityResult | None,
    settings: Settings,
    grid: Grid,
    search: BudgetSearch,
    target: Target,
) -> SensitivityResult:
    """Measure what the target needs; returns what the file then holds."""

    def united(new: SensitivityResult) -> SensitivityResult:
        return merge_results([old, new], [str(path), "this measurement"]) if old else new

    def saved(analysis: Analysis) -> SensitivityResult:
        result = united(analysis.result(analysis.finished))
        write_result(path, result)
        return result

    with open_analysis(cfg, traced.model, settings, path, united) as analysis:

        def measure(points: dict[str, list[float]]) -> Losses:
            chosen = keep_cuts(analysis.targets, lambda cut: cut.ratio in points.get(cut.group, ()))
            analysis.measure(chosen)
            return saved(analysis).groups

        measure_needed(grid, saved(analysis).groups, _solver(search, target), measure)
        return saved(analysis)
