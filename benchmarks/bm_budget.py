"""Time that `ratios` takes to solve a budget, for the head and for all layers of a YOLOv3.

    python benchmarks/bm_budget.py

The head has losses measured on BCCD; the 41 groups of the ResNet-34 model have invented losses.
Costs are counted for each problem, so the time of a row includes the front of all budgets and one
plan. A plan keeps at least as much of the metric as the front promises for its budget, unless the
front's point costs far less: a plan that removes much more than was asked for is not chosen.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from slim_det.planning.budget.costs import TracedModel
    from slim_det.planning.budget.search import BudgetSearch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHARES = (0.3, 0.5, 0.7)


def main() -> None:
    """Print a row for each model, resource and share."""
    import paddle

    print(
        f"python {platform.python_version()}, paddle {paddle.__version__}, {platform.machine()} "
        f"CPU, {os.cpu_count()} cores"
    )
    logging.disable(logging.INFO)
    for name, search in (("head", search_of_head()), ("all layers", search_of_all_layers())):
        print(f"{name}: {len(search.groups)} groups")
        for kind in ("macs", "params"):
            for share in SHARES:
                print_row(search, kind, share)


def print_row(search: BudgetSearch, kind: str, share: float) -> None:
    """Solve one target."""
    from slim_det.planning.budget.targets import Target

    start = time.perf_counter()
    solution = search.solve(Target(kind, share))
    seconds = time.perf_counter() - start
    reached = 1.0 - solution.after[kind] / solution.before[kind]
    promised = max((r.retained for r in solution.front if r.removed >= reached), default=0.0)
    print(
        f"  {kind} -{share:.0%}: {seconds:5.1f} s, removed {reached:.3%}, keeps "
        f"{solution.retained:.5f} of the metric (front: {promised:.5f}, "
        f"{len(solution.front)} points), {solution.method}"
    )


def search_of_head() -> BudgetSearch:
    """The YOLOv3 of the BCCD example with its sensitivity file."""
    from slim_det.planning.budget.options import Limits
    from slim_det.planning.budget.prepare import make_search
    from slim_det.planning.sensitivity.result import read_result

    source = ROOT / "configs/yolov3/bccd_sensitivity.json"
    traced = traced_of("yolov3_mobilenet_v1_bccd", 416)
    return make_search(traced, read_result(source), str(source), Limits())


def search_of_all_layers() -> BudgetSearch:
    """All groups of a ResNet-34 YOLOv3, with losses that grow by a power of the ratio."""
    from slim_det.planning.budget.costs import FactorBuilder, macs_rule, params_rule
    from slim_det.planning.budget.options import Limits
    from slim_det.planning.budget.search import BudgetSearch

    traced = traced_of("yolov3_r34_270e_voc", 608)
    groups = [group for group in traced.groups.groups.values() if group.prunable]
    rng = np.random.default_rng(0)
    largest, power = rng.uniform(0.1, 1, len(groups)), rng.uniform(1, 4, len(groups))
    losses = {
        group.name: {r / 10: float(a * (r / 10) ** b) for r in range(1, 10)}
        for group, a, b in zip(groups, largest, power)
    }
    builder = FactorBuilder(traced, list(losses))
    rules = {"macs": macs_rule(traced), "params": params_rule}
    return BudgetSearch(groups, losses, builder, rules, Limits(), {})


def traced_of(config: str, size: int) -> TracedModel:
    """A model without weights; costs need none."""
    from slim_det.compress.prune.groups import find_groups
    from slim_det.graph.trace import trace_detector
    from slim_det.planning.budget.costs import TracedModel
    from slim_det.training import session
    from slim_det.training.config import load_config

    cfg = load_config(str(ROOT / f"configs/yolov3/{config}.yml"), [])
    session.set_device(cfg)
    model = session.build_model(cfg)
    trace = trace_detector(model, (size, size))
    return TracedModel(model, trace, find_groups(model, trace))


if __name__ == "__main__":
    main()
