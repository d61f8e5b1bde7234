"""From a sensitivity result and a model to a search; the two must belong together."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.requests import select_groups
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.errors import LayerError, SensitivityError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.planning.budget.costs import (
    FactorBuilder,
    Rule,
    TracedModel,
    latency_rule,
    macs_rule,
    params_rule,
)
from slim_det.planning.budget.options import Limits
from slim_det.planning.budget.search import BudgetSearch
from slim_det.planning.profile.table import LatencyTable
from slim_det.planning.sensitivity.result import SensitivityResult

logger = logging.getLogger("slim_det")


def make_search(
    traced: TracedModel,
    result: SensitivityResult,
    source: str,
    limits: Limits,
    table: LatencyTable | None = None,
) -> BudgetSearch:
    """Check that losses and model belong together and make the search.

    Args:
        traced: The unpruned model.
        result: What was measured on it.
        source: File of the result, for errors.
        limits: Of every group.
        table: Latencies; without it only MACs and parameters can be targets.

    Raises:
        SensitivityError: The result is of another model, or holds no losses.
        LayerError: It names a group that the model lacks or that cannot be pruned.
        ConfigError: Its criterion is unknown.
        LatencyError: The table lacks a convolution.
    """
    check_same_model(traced, result, source)
    losses = losses_by_group(traced, result.groups, source)
    Pruner(result.criterion, pruned_ratios=0.5)
    if not result.complete:
        logger.warning("'%s' is not complete: what it lacks is not cut or interpolated", source)
    builder = FactorBuilder(traced, list(losses), result.criterion, limits.align)
    rules: dict[str, Rule] = {"macs": macs_rule(traced), "params": params_rule}
    constants = {}
    if table is not None:
        rules["latency_ms"] = latency_rule(traced, table.latency_ms)
        constants["latency_ms"] = table.other_ms or 0.0
        if table.other_ms is None:
            logger.warning("the latency table has no other_ms: only convolutions are counted")
    groups = [traced.groups.groups[name] for name in losses]
    return BudgetSearch(groups, losses, builder, rules, limits, constants)


def check_same_model(traced: TracedModel, result: SensitivityResult, source: str) -> None:
    """Refuse losses that were measured on another model.

    Raises:
        SensitivityError: The fingerprints differ; a file without one passes.
    """
    own = fingerprint(type(traced.model).__name__, tensor_shapes(traced.model))
    measured = result.sources.fingerprint
    if measured is not None and measured != own:
        raise SensitivityError(
            f"'{source}' was measured on another model: its fingerprint is "
            f"{measured[:12]}, this model's {own[:12]}; expected the configuration "
            "that it was measured with"
        )


def losses_by_group(
    traced: TracedModel, measured: Mapping[str, Mapping[float, float]], source: str
) -> dict[str, dict[float, float]]:
    """Losses under the names of the model's groups, in execution order.

    Args:
        traced: The model.
        measured: Layer in any spelling -> ratio -> relative loss.
        source: Their file, for errors.

    Raises:
        LayerError: A layer is unknown, cannot be cut, or two are one group.
        SensitivityError: There are no losses.
    """
    finder, found = LayerFinder(traced.model), {}
    for spelling, losses in measured.items():
        try:
            # Only names matter here; a pattern is not a name.
            names = list(select_groups([(spelling, 0.5)], finder, traced.groups))
        except LayerError as error:
            raise LayerError(f"'{source}': {error}") from error
        if len(names) != 1 or names[0] in found:
            raise LayerError(f"'{source}': '{spelling}' does not name one group of its own")
        if losses:
            found[names[0]] = dict(losses)
    if not found:
        raise SensitivityError(f"'{source}' holds no losses; expected at least one group")
    return {name: found[name] for name in traced.groups.groups if name in found}
