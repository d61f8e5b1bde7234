"""Plans one after the other: two as one against the original model, and what is left to cut."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import ModelGroups
from slim_det.compress.prune.plan import Plan, apply_plan, describe_cost, plan_of
from slim_det.compress.steps import attach_step
from slim_det.compress.tensors import differing, summary
from slim_det.core.errors import PlanError
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import trace_detector

logger = logging.getLogger("slim_det")

Slices = dict[str, dict[int, np.ndarray]]
"""State-dict name -> axis -> kept indices."""


def apply_composed(model: paddle.nn.Layer, plan: Plan) -> Plan:
    """Prune a model in place and check its cost; if it has a plan already, both become one.

    Args:
        model: The model that the plan was made for.
        plan: What to remove.

    Returns:
        The plan that is attached to the model.

    Raises:
        PlanError: The pruned model does not cost what the plan says.
    """
    earlier = plan_of(model)
    apply_plan(model, plan)
    reached = model_cost(model, trace_detector(model, plan.image_size_hw)).as_dict()
    if reached != plan.cost["after"]:
        raise PlanError(
            f"the cut model costs {reached}, the plan says {plan.cost['after']}; "
            "the model's code holds channel numbers that cannot be followed"
        )
    if earlier is not None:
        plan = compose(earlier, plan)
        attach_step(model, plan)
    logger.info("%s", describe_cost(plan))
    return plan


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that does at once what two plans do one after the other.

    Args:
        first: A plan of the original model.
        second: A plan of the model that the first one leaves; its groups are those of the original
            model without what was removed (see `groups_left`).

    Returns:
        A plan of the original model. Its settings are those of the second one, with those of all
        plans before it under ``earlier``, oldest first.

    Raises:
        PlanError: The second plan is of another model, or at another image size.
    """
    differences = differing(second.tensors, _shapes_left(first), "second plan", "pruned model")
    if second.architecture != first.architecture or differences:
        names = f"they are of {first.architecture} and {second.architecture}"
        raise PlanError(f"the plans do not follow each other: {summary(differences or [names])}")
    if second.image_size_hw != first.image_size_hw:
        raise PlanError(
            f"the plans give costs at {first.image_size_hw} and {second.image_size_hw}; expected "
            "one image size"
        )
    return Plan(
        architecture=first.architecture,
        tensors=first.tensors,
        image_size_hw=first.image_size_hw,
        settings={**second.settings, "earlier": history(first.settings)},
        cost={"before": first.cost["before"], "after": second.cost["after"]},
        groups=_composed_groups(first.groups, second.groups),
        slices=_composed_slices(first.slices, second.slices),
        depthwise={**first.depthwise, **second.depthwise},
        repair=second.repair,
    )


def slices_between(first: Plan, both: Plan) -> Slices:
    """What a composed plan keeps of the tensors that its first plan leaves: the second's slices."""
    between: Slices = {}
    for name, axes in both.slices.items():
        for axis, kept in axes.items():
            before = first.slices.get(name, {}).get(axis, np.arange(first.tensors[name][axis]))
            if len(kept) < len(before):
                between.setdefault(name, {})[axis] = np.searchsorted(before, kept)
    return between


def groups_left(groups: ModelGroups, plan: Plan) -> ModelGroups:
    """The groups of a pruned model, in units of the original one.

    Args:
        groups: Groups of the original model.
        plan: What was removed from it.

    Raises:
        PlanError: The plan is of other groups.
    """
    unknown = [name for name in plan.groups if name not in groups.groups]
    if unknown:
        raise PlanError(f"the plan cuts '{unknown[0]}', which is no group of this model")
    removed = [np.zeros(0, np.int64)]
    for name, entry in plan.groups.items():
        units = groups.groups[name].units
        removed.append(units[~np.isin(np.arange(len(units)), entry["kept"])])
    left = groups.without(np.concatenate(removed))
    shapes = _shapes_left(plan)
    for axis in left.axes:
        if shapes[axis.parameter][axis.axis] != len(axis.ids):
            raise PlanError(
                f"the plan leaves {shapes[axis.parameter][axis.axis]} channels of "
                f"'{axis.parameter}' on axis {axis.axis}, its groups leave {len(axis.ids)}"
            )
    return left


def history(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a plan after those of the plans before it, oldest first."""
    own = {key: value for key, value in settings.items() if key != "earlier"}
    return [*settings.get("earlier", []), own]


def _shapes_left(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor after a plan."""
    return {**plan.tensors, **plan.shapes_after()}


def _composed_groups(
    first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    composed = dict(first)
    for name, entry in second.items():
        if name in first:
            kept = [first[name]["kept"][place] for place in entry["kept"]]
            composed[name] = {**first[name], "kept": kept}
        else:
            composed[name] = entry
    return composed


def _composed_slices(first: Slices, second: Slices) -> Slices:
    composed = {name: dict(first.get(name, {})) for name in {**first, **second}}
    for name, axes in second.items():
        for axis, kept in axes.items():
            before = first.get(name, {}).get(axis)
            composed[name][axis] = kept if before is None else before[kept]
    return composed
