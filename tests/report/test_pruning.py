"""What is reported of a pruning: the table of layers, and JSON."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from slim_det.evaluate.evaluation import EvalResult
from slim_det.report.pruning import layer_table, pruning_figures
from tests.compress.prune.small_net import SmallNet, small_plan

REPAIR: dict[str, Any] = {
    "images": 3,
    "layers": [
        {"weight": "outer.weight", "before": 0.5, "after": 0.125, "note": ""},
        {"weight": "head.weight", "before": 2.0, "after": 2.0, "note": "it is no better"},
    ],
    "left": {"again.weight": "its input depends on itself"},
}


def shown(plan: Any) -> list[list[str]]:
    """Cells of the printed table, row by row."""
    stream = io.StringIO()
    Console(file=stream, width=200).print(layer_table(plan))
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    return [line.split() for line in lines]


def test_no_repair() -> None:
    (head, *rows) = shown(small_plan(SmallNet()))
    assert " ".join(head).startswith("layer error, cut error, repaired") and rows == []


def test_every_layer_has_a_row() -> None:
    plan = small_plan(SmallNet())
    plan.repair = REPAIR
    _, *rows = shown(plan)
    assert rows == [
        ["outer.weight", "0.5000", "0.1250"],
        ["head.weight", "2.0000", "2.0000", "it", "is", "no", "better"],
        ["again.weight", "its", "input", "depends", "on", "itself"],
    ]


def test_figures_without_metrics() -> None:
    plan = small_plan(SmallNet())
    figures = pruning_figures(plan, {})
    assert figures["groups"] == {
        "stem": {"channels": 4, "kept": 2},
        "inner": {"channels": 6, "kept": 3},
    }
    assert plan.groups["stem"]["kept"] == [0, 3]
    assert (figures["before"], figures["after"]) == ({"macs": 2}, {"macs": 1})
    assert figures["image_size_hw"] == [8, 8] and figures["criterion"] == "l1_norm"
    keys = [f"{kind}_{when}" for kind in ("ap", "per_class") for when in ("before", "cut")]
    assert all(figures[key] is None for key in (*keys, "ap_repaired", "metric", "repair"))


def test_figures_with_metrics() -> None:
    plan = small_plan(SmallNet())
    plan.repair = REPAIR
    metrics = {
        label: EvalResult(**_result(ap))
        for label, ap in (("before", 0.75), ("after the cut", 0.0), ("after the repair", 0.5))
    }
    figures = pruning_figures(plan, metrics)
    assert (figures["ap_before"], figures["ap_cut"], figures["ap_repaired"]) == (0.75, 0.0, 0.5)
    assert figures["per_class_repaired"] == {"circle": 0.5}
    assert figures["metric"] == "coco_ap" and figures["repair"] is REPAIR


def _result(ap: float) -> dict[str, Any]:
    return {
        "metric": "coco_ap", "ap": ap, "ap50": ap, "per_class": {"circle": ap}, "num_images": 6,
        "engine": "dygraph", "latency_ms": 1.0,
    }  # fmt: skip
