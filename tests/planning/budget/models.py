"""The model of the tests of budgets."""

from __future__ import annotations

from pathlib import Path

from slim_det.compress.prune.groups import find_groups
from slim_det.graph.trace import trace_detector
from slim_det.planning.budget.costs import TracedModel
from slim_det.training import session
from slim_det.training.config import load_config


def traced_model(config: Path) -> TracedModel:
    """An untrained detector at 96x96 pixels with its operators and groups."""
    model = session.build_model(load_config(config))
    trace = trace_detector(model, (96, 96))
    return TracedModel(model, trace, find_groups(model, trace))
