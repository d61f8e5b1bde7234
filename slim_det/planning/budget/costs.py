"""Costs of every combination of options, by the one counting rule of each resource.

A weight is cut along several axes, by the groups that make its output and those that feed its
input, so its cost is a product of their widths: a factor over these groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import PlanError
from slim_det.graph.cost import macs_by_parameter
from slim_det.graph.op import Op
from slim_det.graph.trace import Trace
from slim_det.planning.budget.options import ratio_for
from slim_det.planning.budget.problem import Factor, merged
from slim_det.planning.profile.shapes import ConvShape, conv_shapes, resized

Rule = Callable[[str, "tuple[int, ...]"], float]
"""Cost of one parameter (state-dict name) at a shape."""


@dataclass(frozen=True)
class TracedModel:
    """An unpruned model, its operators at the image size of the costs, and its channel groups."""

    model: paddle.nn.Layer
    trace: Trace
    groups: ModelGroups


def macs_rule(traced: TracedModel) -> Rule:
    """Multiply-accumulates of one parameter's operators, as `slim_det.graph.cost` counts them."""
    traces = operators_of_parameters(traced.trace)

    def macs(name: str, shape: tuple[int, ...]) -> float:
        own = traces.get(name)
        return float(macs_by_parameter(own, {name: shape}).get(name, 0)) if own else 0.0

    return macs


def params_rule(name: str, shape: tuple[int, ...]) -> float:
    """Numbers in one parameter, running statistics included."""
    return float(math.prod(shape))


def operators_of_parameters(trace: Trace) -> dict[str, Trace]:
    """For each parameter, a trace of only the operators that read it."""
    ops: dict[str, list[Op]] = {}
    for op in trace.ops:
        variables = {v for names in op.inputs.values() for v in names}
        for name in {trace.parameters[v] for v in variables if v in trace.parameters}:
            ops.setdefault(name, []).append(op)
    return {name: replace(trace, ops=own) for name, own in ops.items()}


def latency_rule(traced: TracedModel, latency_ms: Callable[[ConvShape], float]) -> Rule:
    """Milliseconds of one parameter's convolutions, by the latency of one convolution."""
    shapes: dict[str, list[ConvShape]] = {}
    for name, shape in conv_shapes(traced.trace):
        shapes.setdefault(name, []).append(shape)

    def latency(name: str, weight: tuple[int, ...]) -> float:
        return sum(latency_ms(resized(shape, weight)) for shape in shapes.get(name, []))

    return latency


class FactorBuilder:
    """Builds the factors of a model for any options of its groups.

    Args:
        traced: The unpruned model.
        names: Groups that may be cut, in the order of the variables.
        criterion: Decides which units are removed, if their number does not determine the shapes.
        align: Alignment of the pruner.
    """

    def __init__(
        self, traced: TracedModel, names: Sequence[str], criterion: str = "l1_norm", align: int = 1
    ) -> None:
        self._traced = traced
        self._names = list(names)
        self._criterion = criterion
        self._align = align
        self._shapes = tensor_shapes(traced.model)
        self._uneven = uneven_groups(traced.groups)
        self._axes = self._followed_axes()
        self._removed_ids: dict[tuple[str, int], np.ndarray] = {}

    def build(
        self, options: Sequence[Sequence[int]], rule: Rule
    ) -> tuple[float, tuple[Factor, ...]]:
        """Cost that no option changes, and one factor for each set of groups that meet.

        Args:
            options: Variable -> numbers of units that may be removed.
            rule: Cost of a parameter.
        """
        constant, factors = 0.0, []
        for name, shape in self._shapes.items():
            widths = self._widths(name, options)
            scope = tuple(sorted({v for _, by_variable in widths for v in by_variable}))
            if not scope:
                constant += rule(name, shape)
                continue
            costs = np.zeros([len(options[v]) for v in scope])
            for index in product(*(range(n) for n in costs.shape)):
                cut = list(shape)
                for axis, removed in widths:
                    cut[axis] -= sum(removed[v][i] for v, i in zip(scope, index) if v in removed)
                costs[index] = rule(name, tuple(cut))
            factors.append(Factor(scope, costs))
        return constant, merged(factors)

    def _followed_axes(self) -> dict[str, list[tuple[int, np.ndarray, list[int]]]]:
        """Parameter -> (axis, identities of its entries, variables among them)."""
        owner = {
            unit: v
            for v, name in enumerate(self._names)
            for unit in self._traced.groups.groups[name].units.tolist()
        }
        axes: dict[str, list[tuple[int, np.ndarray, list[int]]]] = {}
        for axis in self._traced.groups.axes:
            variables = sorted({owner[unit] for unit in axis.ids.tolist() if unit in owner})
            if axis.parameter in self._shapes and variables:
                axes.setdefault(axis.parameter, []).append((axis.axis, axis.ids, variables))
        return axes

    def _widths(
        self, parameter: str, options: Sequence[Sequence[int]]
    ) -> list[tuple[int, dict[int, list[int]]]]:
        """Followed axes of a parameter -> variable -> entries that each option removes."""
        return [
            (
                axis,
                {
                    v: [int(np.isin(ids, self._removed(v, r)).sum()) for r in options[v]]
                    for v in variables
                },
            )
            for axis, ids, variables in self._axes.get(parameter, [])
        ]

    def _removed(self, variable: int, removed: int) -> np.ndarray:
        """Identities of the removed units; any will do if all are alike."""
        group = self._traced.groups.groups[self._names[variable]]
        if removed == 0 or group.name not in self._uneven:
            return group.units[:removed]
        if (group.name, removed) not in self._removed_ids:
            self._removed_ids[group.name, removed] = self._by_criterion(group, removed)
        return self._removed_ids[group.name, removed]

    def _by_criterion(self, group: Group, removed: int) -> np.ndarray:
        ratio = ratio_for(len(group.units), removed, self._align)
        pruner = Pruner(self._criterion, pruned_ratios={group.name: ratio}, align=self._align)
        try:
            plan = pruner.plan_for_costs(
                self._traced.model, self._traced.trace, self._traced.groups
            )
        except PlanError:  # every layer of the group keeps a channel: none can be removed
            return group.units[:0]
        return np.delete(group.units, plan.groups[group.name]["kept"])


def uneven_groups(groups: ModelGroups) -> set[str]:
    """Groups whose units have different numbers of entries on some axis.

    Their costs depend on which units are removed, hence on the weights.
    """
    owner = {unit: g.name for g in groups.groups.values() for unit in g.units.tolist()}
    uneven = set()
    for axis in groups.axes:
        entries: dict[str, list[int]] = {}
        for unit, count in zip(*np.unique(axis.ids, return_counts=True)):
            if int(unit) in owner:
                entries.setdefault(owner[int(unit)], []).append(int(count))
        for name, counts in entries.items():
            if len(set(counts)) > 1 or len(counts) != len(groups.groups[name].units):
                uneven.add(name)
    return uneven
