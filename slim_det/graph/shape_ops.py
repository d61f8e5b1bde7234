"""Rules of shape ops: how concatenations, splits, slices and reshapes move channel identities."""

from __future__ import annotations

import math

import numpy as np

from slim_det.graph.channels import ChannelGraph, Tracked, of_one_input, unknown
from slim_det.graph.op import Op


def concat(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Joins the lists of identities; along another axis it ties them."""
    names = op.inputs["X"]
    sides = [graph.channels.get(name) for name in names]
    tracked = [side for side in sides if side is not None]
    if not tracked:
        return None
    if any(side.axis != tracked[0].axis for side in tracked) or op.input("AxisTensor"):
        return unknown(graph, op)
    axis = op.attrs.get("axis", 0) % len(graph.shapes[op.output()])
    if axis == tracked[0].axis:
        # Tensors without channels that can be cut (coordinates, the image) still take up room.
        reason = "it is tied to values of fixed width"
        parts = [
            side or Tracked.made(axis, graph.fixed(graph.shapes[name][axis], reason))
            for name, side in zip(names, sides)
        ]
        ids = np.concatenate([part.ids for part in parts])
        return Tracked(axis, ids, np.concatenate([part.zero_kept for part in parts]))
    for side in tracked[1:]:
        graph.tie(tracked[0].ids, side.ids)
    if len(tracked) < len(sides):
        graph.freeze(tracked[0], "it is joined with values of fixed width")
    zero_kept = np.logical_and.reduce([side.zero_kept for side in tracked])
    return Tracked(tracked[0].axis, tracked[0].ids, zero_kept)


def split(graph: ChannelGraph, op: Op) -> list[Tracked] | Tracked | None:
    """Divides the list of identities; equal parts are tied to one another."""
    tracked, outputs = graph.channels.get(op.input("X")), op.outputs["Out"]
    if tracked is None or op.input("AxisTensor"):
        return unknown(graph, op)
    axis = op.attrs.get("axis", 0) % len(graph.shapes[op.input("X")])
    if axis != tracked.axis:
        return [tracked] * len(outputs)
    ends = np.cumsum([graph.shapes[output][axis] for output in outputs])[:-1]
    parts = np.split(tracked.ids, ends)
    if op.attrs.get("num"):
        for part in parts[1:]:
            graph.tie(parts[0], part)
    else:
        graph.freeze(tracked, "it is split at channel numbers that are written in the model")
    zero_kept = np.split(tracked.zero_kept, ends)
    return [Tracked(axis, part, zero) for part, zero in zip(parts, zero_kept)]


@of_one_input
def slice_(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked | None:
    """Passes channels on, unless it cuts along them."""
    if tracked.axis in op.attrs.get("axes", []) or op.attrs.get("decrease_axis"):
        graph.freeze(tracked, "it is sliced at channel numbers that are written in the model")
        return None
    return tracked


@of_one_input
def gather(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked | None:
    """Passes channels on, unless it picks some of them."""
    axis = op.attrs.get("axis", 0) % len(graph.shapes[op.input("X")])
    if (
        op.input("Axis")
        or axis == tracked.axis
        or graph.shapes[op.input("Index")][1:] not in ((), (1,))
    ):
        return unknown(graph, op)
    return tracked


def select(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Ties the channels of the two branches of a condition."""
    sides = [graph.channels.get(name) for name in op.inputs["X"]]
    tracked = [side for side in sides if side is not None]
    if not tracked:
        return None
    first, *others = tracked
    for other in others:
        if other.axis != first.axis or len(other.ids) != len(first.ids):
            return unknown(graph, op)
        graph.tie(first.ids, other.ids)
    if len(tracked) < len(sides):
        graph.freeze(first, "the other branch of a condition has values of fixed width")
    zero_kept = np.logical_and.reduce([side.zero_kept for side in tracked])
    return Tracked(first.axis, first.ids, zero_kept)


def reshape(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Passes channels on if their axis is kept, or is the first of those that are joined."""
    variable, output = op.input("X"), op.output()
    if graph.parameter_name(variable) and len(graph.shapes[variable]) == 1:
        return _reshaped_vector(graph, variable, output)
    tracked = graph.channels.get(variable)
    if tracked is None:
        return None
    before, after = graph.shapes[variable], graph.shapes[output]
    wanted, axis = list(op.attrs.get("shape", [])), tracked.axis
    same_start = before[:axis] == after[:axis] and len(after) > axis
    if same_start and len(wanted) == len(after):
        if wanted[axis] in (0, -1) and after[axis] == before[axis]:
            return tracked
        if wanted[axis] == -1 and after[axis] == math.prod(before[axis:]):
            return tracked.repeated(math.prod(before[axis + 1 :]))
    graph.freeze(tracked, "it is reshaped to channel numbers that are written in the model")
    return None


def _reshaped_vector(graph: ChannelGraph, variable: str, output: str) -> Tracked | None:
    """A bias vector that becomes [1, C, 1, 1]."""
    (count,), shape = graph.shapes[variable], graph.shapes[output]
    if math.prod(shape) != count or (count > 1 and shape.count(count) != 1):
        return None
    graph.biases[output] = graph.parameter_name(variable)
    if count == 1:
        return None  # of the only channel of a layer, which is never cut
    ids = graph.bind(variable, 0, graph.fresh(count), makes=True)
    return Tracked.made(shape.index(count), ids)


@of_one_input
def flatten(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked | None:
    """Repeats the identity of a channel for each of its pixels."""
    shape = graph.shapes[op.input("X")]
    start = op.attrs.get("start_axis", 1) % len(shape)
    stop = op.attrs.get("stop_axis", -1) % len(shape)
    if tracked.axis < start:
        return tracked
    if tracked.axis == start:
        return tracked.repeated(math.prod(shape[start + 1 : stop + 1]))
    graph.freeze(tracked, "flattening mixes its channels")
    return None


@of_one_input
def squeeze(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked | None:
    """Moves the axis of the channels."""
    axes = _axes(graph, op, "axes")
    if tracked.axis in axes or not axes:
        graph.freeze(tracked, "squeezing removes its channel axis")
        return None
    return tracked.moved(tracked.axis - sum(axis < tracked.axis for axis in axes))


@of_one_input
def unsqueeze(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Moves the axis of the channels."""
    rank, axis = len(graph.shapes[op.input("X")]), tracked.axis
    for new in op.attrs.get("axes", []):
        rank += 1
        axis += new % rank <= axis
    return tracked.moved(axis)


@of_one_input
def transpose(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Moves the axis of the channels."""
    return tracked.moved(list(op.attrs["axis"]).index(tracked.axis))


@of_one_input
def reduce(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked | None:
    """Passes channels on, unless it mixes them."""
    axes = _axes(graph, op, "dim")
    if op.attrs.get("reduce_all") or tracked.axis in axes or not axes:
        graph.freeze(tracked, f"operator '{op.type}' mixes its channels")
        return None
    gone = 0 if op.attrs.get("keep_dim") else sum(axis < tracked.axis for axis in axes)
    return tracked.moved(tracked.axis - gone)


def _axes(graph: ChannelGraph, op: Op, attribute: str) -> list[int]:
    """The axes of its input that an operator is told to change, counted from the first."""
    rank = len(graph.shapes[op.input("X")])
    return [axis % rank for axis in op.attrs.get(attribute, [])]
