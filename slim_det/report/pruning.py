"""What pruning and repair did to a detector, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slim_det.compress.prune.plan import Plan
from slim_det.evaluate.evaluation import EvalResult
from slim_det.report.tables import text_table

if TYPE_CHECKING:
    from rich.table import Table

_KEYS = {"before": "before", "after the cut": "cut", "after the repair": "repaired"}


def layer_table(plan: Plan) -> Table:
    """The relative error of each layer that reads a removed or changed channel."""
    repair = plan.repair or {"layers": [], "left": {}}
    rows = [
        (one["weight"], f"{one['before']:.4f}", f"{one['after']:.4f}", one["note"])
        for one in repair["layers"]
    ]
    rows += [(name, "", "", why) for name, why in repair["left"].items()]
    return text_table(("layer", "error, cut", "error, repaired", "not repaired because"), rows)


def pruning_figures(plan: Plan, metrics: Mapping[str, EvalResult]) -> dict[str, Any]:
    """The results with their JSON keys.

    Args:
        plan: The plan.
        metrics: ``before``, ``after the cut``, ``after the repair`` -> result, as far as measured.
    """
    figures: dict[str, Any] = {
        "criterion": plan.settings["criterion"],
        "image_size_hw": list(plan.image_size_hw),
        "groups": {
            name: {**entry, "kept": len(entry["kept"])} for name, entry in plan.groups.items()
        },
        "before": plan.cost["before"],
        "after": plan.cost["after"],
        "repair": plan.repair,
    }
    for label, key in _KEYS.items():
        result = metrics.get(label)
        figures[f"ap_{key}"] = result.ap if result else None
        figures[f"per_class_{key}"] = result.per_class if result else None
    figures["metric"] = next((result.metric for result in metrics.values()), None)
    return figures
