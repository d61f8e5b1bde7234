"""Inspection: the groups of a model, what a pruner would do to them, and the totals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.graph.cost import Cost, macs_by_parameter, model_cost
from slim_det.graph.operators import declared, weight_of
from slim_det.graph.trace import Trace, trace_detector

GIBI = 2**30
MEBI = 2**20


@dataclass(frozen=True)
class GroupReport:
    """One group; MACs and parameters are those of its own layers.

    Attributes:
        name: Module path of its first layer.
        channels: Output channels.
        kept: Output channels that remain.
        ratio: Requested share to remove; 0 if the group is not pruned.
        prunable: Whether it can be pruned.
        reason: Why it cannot be pruned; '' if it can.
        layers: Module paths of all layers that are pruned together.
        macs_before: MACs of these layers.
        macs_after: MACs of these layers after pruning this group and those that feed it.
        params_before: Parameters of these layers.
        params_after: Parameters of these layers after pruning.
    """

    name: str
    channels: int
    kept: int
    ratio: float
    prunable: bool
    reason: str
    layers: tuple[str, ...]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True)
class Inspection:
    """Totals and groups of a model.

    Attributes:
        image_size_hw: Height and width that MACs were counted at, in pixels.
        before: Cost of the unpruned model.
        after: Cost of the pruned model; equal to ``before`` if nothing is pruned.
        groups: In execution order.
        macs_deformable: MACs of deformable convolutions in ``before`` and ``after``.
        macs_reachable: MACs in ``before`` of all layers that pruning can make smaller: their
            output or their input channels, or a part of these, are in a group that can be pruned.
    """

    image_size_hw: tuple[int, int]
    before: Cost
    after: Cost
    groups: tuple[GroupReport, ...]
    macs_deformable: tuple[int, int] = (0, 0)
    macs_reachable: int = 0

    @property
    def macs_prunable(self) -> int:
        """MACs in ``before`` of the layers of all groups that can be pruned.

        A layer belongs to the group of its output channels, so these are the MACs of the rows
        that give no reason. The layers that only read such channels are not among them.
        """
        return sum(group.macs_before for group in self.groups if group.prunable)

    def as_dict(self) -> dict[str, Any]:
        """The result with its JSON keys."""
        return {
            "image_size_hw": list(self.image_size_hw),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "macs_deformable": dict(zip(("before", "after"), self.macs_deformable)),
            "macs_prunable": self.macs_prunable,
            "macs_reachable": self.macs_reachable,
            "groups": [asdict(group) for group in self.groups],
        }

    def __str__(self) -> str:
        """The totals for the terminal, also in the units of published tables."""
        height, width = self.image_size_hw
        costs = (self.before, self.after)
        gflops = [(c.macs - d) / GIBI for c, d in zip(costs, self.macs_deformable)]
        mib = [cost.params * 4 / MEBI for cost in costs]
        shares = [
            macs / max(self.before.macs, 1) for macs in (self.macs_prunable, self.macs_reachable)
        ]
        lines = [
            f"groups that can be pruned: {shares[0]:.1%} of the MACs; with the layers that read "
            f"them: {shares[1]:.1%}",
            f"at {height}x{width}, batch 1 (FLOPs = 2 x MACs)",
            _row("MACs", self.before.macs, self.after.macs),
            _row("parameters", self.before.params, self.after.params),
            _row("trainable", self.before.params_trainable, self.after.params_trainable),
            f"float32 size: {self.before.size_mb:.2f} MB -> {self.after.size_mb:.2f} MB",
            "in the units of PaddleDetection's published tables: "
            f"{gflops[0]:.2f} -> {gflops[1]:.2f} GFLOPs (MACs / 2^30, without deformable "
            f"convolutions), {mib[0]:.2f} -> {mib[1]:.2f} MiB of float32",
        ]
        if self.macs_deformable[0]:
            lines.insert(3, _row("  of which deformable", *self.macs_deformable))
        return "\n".join(lines)


def inspect_model(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], pruner: Pruner | None = None
) -> Inspection:
    """List the groups of a model and what a pruner would remove; the model is not changed.

    Args:
        model: A ppdet detector, with or without weights.
        image_size_hw: Height and width in pixels.
        pruner: The pruner; None if nothing is to be pruned.
    """
    trace = trace_detector(model, image_size_hw)
    groups = find_groups(model, trace)
    plan = pruner.plan_for_costs(model, trace, groups) if pruner else None
    return inspection_of(model, trace, groups, image_size_hw, plan)


def inspection_of(
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
    image_size_hw: tuple[int, int],
    plan: Plan | None = None,
) -> Inspection:
    """What `inspect_model` says, for a detector that was traced at this size, and a plan."""
    after_shapes = plan.shapes_after() if plan else {}
    macs = macs_by_parameter(trace), macs_by_parameter(trace, after_shapes)
    sizes = {name: p.size for name, p in model.named_parameters()}
    new_sizes = {**sizes, **{n: int(np.prod(shape)) for n, shape in after_shapes.items()}}
    deformable = {trace.parameters[weight_of(op)] for op in trace.ops if declared(op).sampling}
    before = model_cost(model, trace)
    return Inspection(
        image_size_hw=image_size_hw,
        before=before,
        after=Cost.from_dict(plan.cost["after"]) if plan else before,
        groups=tuple(
            _report(group, groups, plan, macs, (sizes, new_sizes))
            for group in groups.groups.values()
        ),
        macs_deformable=(_sum(macs[0], deformable), _sum(macs[1], deformable)),
        macs_reachable=_sum(macs[0], _reachable(groups)),
    )


def _reachable(groups: ModelGroups) -> set[str]:
    """Parameters that make or read channels of a group that can be pruned."""
    prunable = [group.units for group in groups.groups.values() if group.prunable]
    units = np.concatenate([np.empty(0, np.int64), *prunable])
    return {axis.parameter for axis in groups.axes if np.isin(axis.ids, units).any()}


def _report(
    group: Group,
    groups: ModelGroups,
    plan: Plan | None,
    macs: tuple[dict[str, int], dict[str, int]],
    sizes: tuple[dict[str, int], dict[str, int]],
) -> GroupReport:
    own = [member.parameter for member in group.members]
    own += [name for name, follows in groups.followers.items() if follows[:1] == [group.name]]
    removed = 0
    if plan and group.name in plan.groups:
        removed = len(group.units) - len(plan.groups[group.name]["kept"])
    return GroupReport(
        name=group.name,
        channels=group.channels,
        kept=group.channels_kept(removed),
        ratio=plan.settings["ratios"].get(group.name, 0.0) if plan else 0.0,
        prunable=group.prunable,
        reason=group.reason,
        layers=tuple(name.rsplit(".", 1)[0] for name in own if name.endswith(".weight")),
        macs_before=_sum(macs[0], own),
        macs_after=_sum(macs[1], own),
        params_before=_sum(sizes[0], own),
        params_after=_sum(sizes[1], own),
    )


def _sum(counts: dict[str, int], names: Iterable[str]) -> int:
    return sum(counts.get(name, 0) for name in names)


def _row(label: str, before: float, after: float) -> str:
    if before == after:
        return f"{label}: {before:.0f}"
    change = after / before - 1 if before else 0.0
    return f"{label}: {before:.0f} -> {after:.0f} ({change:+.2%})"
