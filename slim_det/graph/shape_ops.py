"""Rules of shape ops: how concatenations, splits, slices and reshapes move channel identities."""

from __future__ import annotations

import math

import numpy as np

from slim_det.graph.channels import ChannelGraph, Tracked
from slim_det.graph.op import Op


def concat(graph: ChannelGraph, op: Op) -> None:
    """Joins the lists of identities; along another axis it ties them."""
    names, output = op.inputs["X"], op.output()
    sides = [graph.get(name) for name in names]
    tracked = [side for side in sides if side is not None]
    axis = _positive(op.attrs.get("axis", 0), len(graph.shape(output)))
    if not tracked:
        graph.set(output, None)
        return
    if any(side.axis != tracked[0].axis for side in tracked) or op.input("AxisTensor"):
        graph.freeze_inputs(op)
        graph.set(output, None)
        return
    if axis == tracked[0].axis:
        # What carries no channels that can be cut (coordinates, the image) still takes room.
        reason = "it is tied to values of fixed width"
        parts = [
            side or Tracked.made(axis, graph.fixed(graph.shape(name)[axis], reason))
            for name, side in zip(names, sides)
        ]
        ids = np.concatenate([part.ids for part in parts])
        zero_kept = np.concatenate([part.zero_kept for part in parts])
        graph.set(output, Tracked(axis, ids, zero_kept))
        return
    for side in tracked[1:]:
        graph.tie(tracked[0].ids, side.ids)
    if len(tracked) < len(sides):
        graph.freeze(tracked[0], "it is joined with values of fixed width")
    zero_kept = np.logical_and.reduce([side.zero_kept for side in tracked])
    graph.set(output, Tracked(tracked[0].axis, tracked[0].ids, zero_kept))


def split(graph: ChannelGraph, op: Op) -> None:
    """Parts the list of identities; equal parts are tied to one another."""
    tracked, outputs = graph.get(op.input("X")), op.outputs["Out"]
    if tracked is None:
        return
    if op.input("AxisTensor"):
        graph.freeze_inputs(op)
        return
    axis = _positive(op.attrs.get("axis", 0), len(graph.shape(op.input("X"))))
    if axis != tracked.axis:
        for output in outputs:
            graph.set(output, tracked)
        return
    if not op.attrs.get("num"):
        graph.freeze(tracked, "it is split at channel numbers that are written in the model")
    ends = np.cumsum([graph.shape(output)[axis] for output in outputs])[:-1]
    parts = np.split(tracked.ids, ends)
    for output, part, zero_kept in zip(outputs, parts, np.split(tracked.zero_kept, ends)):
        if op.attrs.get("num"):
            graph.tie(parts[0], part)
        graph.set(output, Tracked(axis, part, zero_kept))


def slice_(graph: ChannelGraph, op: Op) -> None:
    """Passes channels on, unless it cuts along them."""
    tracked = graph.get(op.input("Input") or op.input("X"))
    if tracked is None:
        return
    if tracked.axis in op.attrs.get("axes", []) or op.attrs.get("decrease_axis"):
        graph.freeze(tracked, "it is sliced at channel numbers that are written in the model")
        graph.set(op.output(), None)
        return
    graph.set(op.output(), tracked)


def reshape(graph: ChannelGraph, op: Op) -> None:
    """Passes channels on where their axis is kept, or is the first of those that are joined."""
    variable, output = op.input("X"), op.output()
    if graph.parameter_name(variable) and len(graph.shape(variable)) == 1:
        _reshape_vector(graph, variable, output)
        return
    tracked = graph.get(variable)
    if tracked is None:
        return
    before, after = graph.shape(variable), graph.shape(output)
    wanted, axis = list(op.attrs.get("shape", [])), tracked.axis
    same_start = before[:axis] == after[:axis] and len(after) > axis
    if same_start and len(wanted) == len(after):
        if wanted[axis] in (0, -1) and after[axis] == before[axis]:
            graph.set(output, tracked)
            return
        if wanted[axis] == -1 and after[axis] == math.prod(before[axis:]):
            graph.set(output, tracked.repeated(math.prod(before[axis + 1 :])))
            return
    graph.freeze(tracked, "it is reshaped to channel numbers that are written in the model")
    graph.set(output, None)


def _reshape_vector(graph: ChannelGraph, variable: str, output: str) -> None:
    """A bias vector on its way to [1, C, 1, 1]."""
    (count,) = graph.shape(variable)
    if graph.shape(output).count(count) == 1 and math.prod(graph.shape(output)) == count:
        ids = graph.bind(variable, 0, graph.fresh(count), makes=True)
        graph.set(output, Tracked.made(graph.shape(output).index(count), ids))
        graph.biases.add(output)


def flatten(graph: ChannelGraph, op: Op) -> None:
    """Repeats the identity of a channel for each of its pixels."""
    tracked, shape = graph.get(op.input("X")), graph.shape(op.input("X"))
    if tracked is None:
        return
    start = _positive(op.attrs.get("start_axis", 1), len(shape))
    stop = _positive(op.attrs.get("stop_axis", -1), len(shape))
    if tracked.axis < start:
        graph.set(op.output(), tracked)
    elif tracked.axis == start:
        graph.set(op.output(), tracked.repeated(math.prod(shape[start + 1 : stop + 1])))
    else:
        graph.freeze(tracked, "flattening mixes its channels")


def squeeze(graph: ChannelGraph, op: Op) -> None:
    """Moves the axis of the channels."""
    tracked, shape = graph.get(op.input("X")), graph.shape(op.input("X"))
    if tracked is None:
        return
    axes = [_positive(a, len(shape)) for a in op.attrs.get("axes", [])]
    if tracked.axis in axes or not axes:
        graph.freeze(tracked, "squeezing removes its channel axis")
        return
    graph.set(op.output(), tracked.moved(tracked.axis - sum(a < tracked.axis for a in axes)))


def unsqueeze(graph: ChannelGraph, op: Op) -> None:
    """Moves the axis of the channels."""
    tracked = graph.get(op.input("X"))
    if tracked is None:
        return
    rank, axis = len(graph.shape(op.input("X"))), tracked.axis
    for new in op.attrs.get("axes", []):
        rank += 1
        axis += _positive(new, rank) <= axis
    graph.set(op.output(), tracked.moved(axis))


def transpose(graph: ChannelGraph, op: Op) -> None:
    """Moves the axis of the channels."""
    tracked = graph.get(op.input("X"))
    if tracked is not None:
        axis = list(op.attrs["axis"]).index(tracked.axis)
        graph.set(op.output(), tracked.moved(axis))


def reduce(graph: ChannelGraph, op: Op) -> None:
    """Passes channels on, unless it mixes them."""
    tracked, shape = graph.get(op.input("X")), graph.shape(op.input("X"))
    if tracked is None:
        return
    axes = [_positive(a, len(shape)) for a in op.attrs.get("dim", [])]
    if op.attrs.get("reduce_all") or tracked.axis in axes or not axes:
        graph.freeze(tracked, f"operator '{op.type}' mixes its channels")
        return
    gone = 0 if op.attrs.get("keep_dim") else sum(a < tracked.axis for a in axes)
    graph.set(op.output(), tracked.moved(tracked.axis - gone))


def _positive(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis
