"""Groups: channels that can only be removed together, and why some cannot be removed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import paddle

from slim_det.graph.channels import ChannelGraph, ParameterAxis, Producer
from slim_det.graph.layer_names import layer_names
from slim_det.graph.propagation import follow_channels
from slim_det.graph.trace import Trace


@dataclass(frozen=True)
class Group:
    """Channels of coupled layers that are kept or removed together.

    A *unit* is the smallest removable part: usually one channel of each member, or for a grouped
    convolution one channel of each of its groups.

    Attributes:
        name: Module path of the first member, the name that users see.
        members: Weights that produce the channels, in execution order.
        units: Identity of each unit, in the channel order of the first member, int64 [U].
        channels: Output channels of the widest member.
        reasons: Why it cannot be pruned; empty if it can.
    """

    name: str
    members: tuple[Producer, ...]
    units: np.ndarray
    channels: int
    reasons: tuple[str, ...] = ()

    @property
    def prunable(self) -> bool:
        """Whether any of its channels may be removed."""
        return not self.reasons

    @property
    def reason(self) -> str:
        """Why it cannot be pruned, in one phrase; '' if it can."""
        return "; ".join(self.reasons)

    @property
    def holders(self) -> np.ndarray:
        """Which units each member has, bool [members, U]."""
        return np.array([np.isin(self.units, member.ids) for member in self.members])

    def places_of(self, ids: np.ndarray) -> np.ndarray:
        """Place of each of these units in ``units``, int64 [C]."""
        order = np.argsort(self.units)
        return order[np.searchsorted(self.units, ids, sorter=order)]

    def channels_kept(self, units_removed: int) -> int:
        """Remaining channels of the widest member."""
        return self.channels - units_removed * self.channels // len(self.units)


@dataclass(frozen=True)
class ModelGroups:
    """Every group of a model, and the parameter axes that follow them.

    Attributes:
        groups: Group name -> group, in execution order.
        axes: Every parameter axis that carries channels, with final identities.
        depthwise: Weight of a depthwise convolution -> output channels per input channel.
        member_of: Weight name -> group name.
        followers: Other tensors (depthwise weights, batch norm) -> group names they follow.
    """

    groups: dict[str, Group]
    axes: list[ParameterAxis]
    depthwise: dict[str, int]
    member_of: dict[str, str]
    followers: dict[str, list[str]]

    def axes_reading(self, units: np.ndarray) -> list[ParameterAxis]:
        """The axes of weights that read any of these units."""
        return [axis for axis in self.axes if not axis.makes and np.isin(axis.ids, units).any()]

    def without(self, removed: np.ndarray) -> ModelGroups:
        """The groups once units are removed; those that are left keep their identity.

        `find_groups` may find others in the pruned model: a grouped convolution with one input
        channel left per group is a depthwise one, whose channels are no longer tied. But only
        units of the original model can be named in a plan against it.

        Args:
            removed: Identities of the removed units, int64 [R].
        """
        axes = [replace(axis, ids=_without(axis.ids, removed)) for axis in self.axes]
        groups = {}
        for group in self.groups.values():
            members = [replace(one, ids=_without(one.ids, removed)) for one in group.members]
            reasons = {unit: list(group.reasons) for unit in group.units.tolist()}
            groups[group.name] = _make_group(group.name, members, reasons)
        return replace(self, groups=groups, axes=axes)


def find_groups(model: paddle.nn.Layer, trace: Trace) -> ModelGroups:
    """Find the channel groups of a traced model.

    Args:
        model: The traced layer; only its names are read.
        trace: Its operators, from `slim_det.graph.trace`.

    Returns:
        All groups, including those that cannot be pruned.
    """
    graph = follow_channels(trace)
    axes = [replace(axis, ids=graph.find(axis.ids)) for axis in graph.axes.values()]
    producers = [replace(one, ids=graph.find(one.ids)) for one in graph.producers.values()]
    reasons = _reasons_by_unit(graph)
    names = layer_names(model)
    groups, member_of = {}, {}
    for members in _coupled(producers):
        group = _make_group(names[members[0].parameter], members, reasons)
        groups[group.name] = group
        member_of.update({member.parameter: group.name for member in members})
    followers = _followers(axes, groups, member_of)
    return ModelGroups(groups, axes, graph.depthwise, member_of, followers)


def _without(ids: np.ndarray, removed: np.ndarray) -> np.ndarray:
    return ids[~np.isin(ids, removed)]


def _reasons_by_unit(graph: ChannelGraph) -> dict[int, list[str]]:
    reasons: dict[int, list[str]] = {}
    for ids, reason in graph.frozen:
        for unit in set(graph.find(ids).tolist()):
            reasons.setdefault(unit, []).append(reason)
    return reasons


def _coupled(producers: list[Producer]) -> list[list[Producer]]:
    """Collect producers that share units, in execution order."""
    bundles: list[tuple[set[int], list[Producer]]] = []
    for producer in producers:
        units = set(producer.ids.tolist())
        touched = [b for b in bundles if not b[0].isdisjoint(units)]
        merged = [p for b in touched for p in b[1]] + [producer]
        for bundle in touched:
            units |= bundle[0]
        first = bundles.index(touched[0]) if touched else len(bundles)
        bundles = [b for b in bundles if b not in touched]
        bundles.insert(first, (units, merged))
    return [members for _, members in bundles]


def _make_group(name: str, members: list[Producer], reasons: dict[int, list[str]]) -> Group:
    every = np.concatenate([member.ids for member in members])
    _, first = np.unique(every, return_index=True)
    units = every[np.sort(first)]
    why = dict.fromkeys(r for unit in units.tolist() for r in reasons.get(unit, []))
    if not why and len(units) == 1:
        why = {"it has a single channel": None}
    channels = max(len(member.ids) for member in members)
    return Group(name, tuple(members), units, max(channels, len(units)), tuple(why))


def _followers(
    axes: list[ParameterAxis], groups: dict[str, Group], member_of: dict[str, str]
) -> dict[str, list[str]]:
    unit_group = {unit: g.name for g in groups.values() for unit in g.units.tolist()}
    followers: dict[str, list[str]] = {}
    for axis in axes:
        if axis.makes and axis.parameter not in member_of:
            found = dict.fromkeys(unit_group[u] for u in axis.ids.tolist() if u in unit_group)
            followers[axis.parameter] = list(found)
    return followers


def slices_without(groups: ModelGroups, removed: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """Parameter name -> axis -> places kept, for every axis that loses units.

    Args:
        groups: All channel groups of a model.
        removed: Identities of the removed units.
    """
    slices: dict[str, dict[int, np.ndarray]] = {}
    for axis in groups.axes:
        keep = ~np.isin(axis.ids, removed)
        if not keep.all():
            slices.setdefault(axis.parameter, {})[axis.axis] = np.flatnonzero(keep)
    return slices
