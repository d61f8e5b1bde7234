"""Pruning in steps: divides the ratios for a model, and records its steps in its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import ModelGroups, slices_without
from slim_det.compress.prune.plan import Plan, plan_of, sliced_shapes
from slim_det.compress.prune.schedule import Schedule, Steps, divide
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, PlanError
from slim_det.graph.cost import count_macs
from slim_det.graph.trace import Trace


def divided(
    schedule: Schedule,
    ratios: Mapping[str, float],
    align: int,
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
) -> Steps:
    """Divide the ratios of a model's groups into the steps of a schedule (see `divide`).

    MACs are those without the first units of each group. Which units are removed only matters for
    groups whose layers do not all hold the same units.
    """
    units = {name: groups.groups[name].units for name in ratios}
    tensors = tensor_shapes(model)

    def macs_of(left: Mapping[str, int]) -> int:
        removed = np.concatenate([own[: len(own) - left[name]] for name, own in units.items()])
        return count_macs(trace, sliced_shapes(tensors, slices_without(groups, removed)))

    counts = {name: len(own) for name, own in units.items()}
    return divide(schedule, counts, ratios, align, macs_of)


def record_step(model: paddle.nn.Layer, steps: Steps, settings: Mapping[str, Any]) -> None:
    """Note in a model's plan that one more step is done, and that training makes the others.

    Args:
        model: The model, pruned by the step.
        steps: As they were before it.
        settings: What its plan keeps of the pruning that is done in steps.
    """
    plan = plan_of(model)
    if plan is not None:
        schedule = asdict(replace(steps, done=steps.done + 1))
        plan.settings = {**settings, "schedule": schedule}
        plan.continues = True


def check_epochs(steps: Steps, cfg: Mapping[str, Any]) -> None:
    """Make sure that a training is long enough for its steps.

    Raises:
        ConfigError: ``epoch`` of ppdet's configuration is smaller.
    """
    epoch = cfg.get("epoch", steps.total_epochs)
    if epoch < steps.total_epochs:
        raise ConfigError(
            f"Pruner.schedule: {steps.count} steps of {steps.asked['epochs']} epochs take "
            f"{steps.total_epochs} and epoch is {epoch}; add -o epoch={steps.total_epochs}"
        )


def check_rest(plan: Plan, schedule: Schedule | None, context: Context) -> None:
    """Refuse to train weights otherwise than by the steps that their plan has left.

    Args:
        plan: The plan beside the weights.
        schedule: The schedule that the slim file asks for, if any.
        context: What the weights are for.

    Raises:
        PlanError: A new training would start between two steps, or the schedules differ.
    """
    steps = plan.steps
    if steps is None or steps.is_complete or not context.is_training:
        return
    reached = f"'{context.weights}' has had {steps.done} of {steps.count} steps of its schedule"
    if context.purpose == "train":
        raise PlanError(
            f"{reached}; resume it with -r, or leave --slim_config out to train it as it is"
        )
    if schedule is None or schedule.asked() != steps.asked:
        raise PlanError(
            f"{reached}, which is not the one of {context.asked_by}; resume without --slim_config"
        )
