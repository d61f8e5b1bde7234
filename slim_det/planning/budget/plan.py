"""The ratios of a solution, and a check that the pruner reaches the solution with them."""

from __future__ import annotations

from collections.abc import Mapping

from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import PlanError
from slim_det.planning.budget.costs import TracedModel
from slim_det.planning.budget.options import ratio_for
from slim_det.planning.budget.search import Solution


def ratios_of(
    traced: TracedModel,
    solution: Solution,
    losses: Mapping[str, Mapping[float, float]],
    align: int = 1,
) -> dict[str, float]:
    """The ratio of each pruned group, a measured one if it removes the same units.

    Args:
        traced: The unpruned model.
        solution: Units to remove.
        losses: Group name -> ratio -> loss, as measured.
        align: Alignment of the pruner.
    """
    groups = traced.groups.groups
    return {
        name: ratio_for(len(groups[name].units), removed, align, sorted(losses[name]))
        for name, removed in solution.removed.items()
        if removed
    }


def checked_ratios(
    traced: TracedModel,
    solution: Solution,
    losses: Mapping[str, Mapping[float, float]],
    pruner: Pruner,
) -> dict[str, float]:
    """The ratios of a solution, once a pruner is known to reach it with them.

    Args:
        traced: The unpruned model.
        solution: Units to remove.
        losses: Group name -> ratio -> loss, as measured.
        pruner: Its criterion and alignment count, not the layers that it names.

    Raises:
        PlanError: See `check_pruner`.
    """
    ratios = ratios_of(traced, solution, losses, pruner.align)
    check_pruner(
        traced, solution, Pruner(pruner.criterion, pruned_ratios=ratios, align=pruner.align)
    )
    return ratios


def check_pruner(traced: TracedModel, solution: Solution, pruner: Pruner) -> None:
    """Make sure that a pruner with the ratios of a solution removes its units at its costs.

    Raises:
        PlanError: It does not; the model would miss its budget.
    """
    plan = pruner.plan_for_costs(traced.model, traced.trace, traced.groups)
    for name, removed in solution.removed.items():
        units = len(traced.groups.groups[name].units)
        kept = len(plan.groups[name]["kept"]) if name in plan.groups else units
        if units - kept != removed:
            raise PlanError(f"'{name}': {units - kept} units are cut, {removed} were solved for")
    for resource in ("macs", "params"):
        reached, solved = plan.cost["after"][resource], solution.after[resource]
        if reached != solved:
            raise PlanError(f"the pruned model has {reached:.0f} {resource}, solved: {solved:.0f}")
