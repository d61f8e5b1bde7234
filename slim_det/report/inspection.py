"""Inspection: every group of a model, what a pruner would do to it, and the totals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.graph.cost import Cost, macs_by_parameter, model_cost
from slim_det.graph.operators import declared, weight_of
from slim_det.graph.trace import trace_detector

GIBI = 2**30
MEBI = 2**20


@dataclass(frozen=True)
class GroupReport:
    """One group; MACs and parameters are those of its own layers.

    Attributes:
        name: Module path of its first layer.
        channels: Output channels.
        kept: Output channels that remain.
        ratio: Requested share; 0 where it is not pruned.
        prunable: Whether it can be pruned.
        reason: Why not; '' where it can.
        layers: Module paths of all layers that are pruned together.
        macs_before: MACs of these layers.
        macs_after: After the cut, of this group and of those that feed it.
        params_before: Parameters of these layers.
        params_after: After the cut.
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
        image_size_hw: Height and width of the MACs, in pixels.
        before: Cost of the unpruned model.
        after: Cost after the cut; the same where nothing is cut.
        groups: In execution order.
        macs_deformable: MACs of deformable convolutions in ``before`` and ``after``.
    """

    image_size_hw: tuple[int, int]
    before: Cost
    after: Cost
    groups: tuple[GroupReport, ...]
    macs_deformable: tuple[int, int] = (0, 0)

    def as_dict(self) -> dict[str, Any]:
        """The result under its JSON keys."""
        return {
            "image_size_hw": list(self.image_size_hw),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "macs_deformable": {
                "before": self.macs_deformable[0],
                "after": self.macs_deformable[1],
            },
            "groups": [asdict(group) for group in self.groups],
        }

    def __str__(self) -> str:
        """The totals for people, with the figures in published tables' units beside them."""
        height, width = self.image_size_hw
        lines = [
            f"at {height}x{width}, batch 1 (FLOPs = 2 x MACs)",
            _row("MACs", self.before.macs, self.after.macs),
            _row("parameters", self.before.params, self.after.params),
            _row("trainable", self.before.params_trainable, self.after.params_trainable),
            f"float32 size: {self.before.size_mb:.2f} MB -> {self.after.size_mb:.2f} MB",
            "in the units of PaddleDetection's published tables: "
            f"{_published(self.before.macs, self.macs_deformable[0])} -> "
            f"{_published(self.after.macs, self.macs_deformable[1])} GFLOPs (MACs / 2^30, without "
            f"deformable convolutions), {self.before.params * 4 / MEBI:.2f} -> "
            f"{self.after.params * 4 / MEBI:.2f} MiB of float32",
        ]
        if self.macs_deformable[0]:
            lines.insert(2, _row("  of which deformable", *self.macs_deformable))
        return "\n".join(lines)


def inspect_model(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], pruner: Pruner | None = None
) -> Inspection:
    """Find the groups of a model and, with a pruner, what it would cut; nothing is changed.

    Args:
        model: A ppdet detector, weights or not.
        image_size_hw: Height and width in pixels.
        pruner: Decides what is pruned; None only to inspect.
    """
    trace = trace_detector(model, image_size_hw)
    groups = find_groups(model, trace)
    plan = pruner.plan(model, trace, groups) if pruner else None
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
    )


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
        macs_before=sum(macs[0].get(name, 0) for name in own),
        macs_after=sum(macs[1].get(name, 0) for name in own),
        params_before=sum(sizes[0][name] for name in own),
        params_after=sum(sizes[1][name] for name in own),
    )


def _sum(counts: dict[str, int], names: set[str]) -> int:
    return sum(counts.get(name, 0) for name in names)


def _row(label: str, before: float, after: float) -> str:
    if before == after:
        return f"{label}: {before:.0f}"
    change = after / before - 1 if before else 0.0
    return f"{label}: {before:.0f} -> {after:.0f} ({change:+.2%})"


def _published(macs: int, deformable: int) -> str:
    return f"{(macs - deformable) / GIBI:.2f}"
