"""Rules of operators that compute: how each one moves channel identities."""

from __future__ import annotations

import numpy as np

from slim_det.graph.channels import ChannelGraph, Tracked
from slim_det.graph.op import Op


def unknown(graph: ChannelGraph, op: Op) -> None:
    """Nothing is known of what it does with its channels."""
    graph.freeze_inputs(op)


def reads_only_shapes(graph: ChannelGraph, op: Op) -> None:
    """Its output depends on the shape of its input alone, which is traced anew after a cut."""


def _channel_axis(op: Op) -> int:
    layout = op.attrs.get("data_format") or op.attrs.get("data_layout")
    return 3 if layout == "NHWC" else 1


def _read(graph: ChannelGraph, variable: str, axis: int, reader: str) -> np.ndarray:
    """Identities on the axis a convolution or product reads; freezes what cannot be cut."""
    tracked = graph.get(variable)
    if tracked is not None and tracked.axis != axis:
        graph.freeze(tracked, f"'{reader}' reads its channels along another axis")
        tracked = None
    if tracked is None:
        return graph.fixed(graph.shape(variable)[axis], f"'{reader}' also reads fixed values")
    lost = tracked.ids[~tracked.zero_kept]
    if len(lost):
        graph.frozen.append((lost, f"'{reader}' reads it where a zeroed channel is not zero"))
    return tracked.ids


def convolution(graph: ChannelGraph, op: Op) -> None:
    """Gives its output channels fresh identities and hands those of its input to its weight."""
    source, weight, output = op.input("Input"), op.input("Filter"), op.output("Output")
    axis, groups = _channel_axis(op), int(op.attrs.get("groups", 1))
    deformable_groups = int(op.attrs.get("deformable_groups", 1))
    name = graph.parameter_name(weight)
    if not name:
        graph.freeze_inputs(op)
        return
    for slot in ("Offset", "Mask"):
        graph.freeze(graph.get(op.input(slot)), f"it holds the sampling offsets of '{name}'")
    channels_in, channels_out = graph.shape(source)[axis], graph.shape(weight)[0]
    ids = _read(graph, source, axis, name)
    _tie_groups(graph, ids, deformable_groups)
    if groups > 1 and groups == channels_in:
        graph.set(output, _depthwise(graph, weight, ids, channels_out // groups, axis))
        return
    graph.bind(weight, 1, _tie_groups(graph, ids, groups), makes=False)
    out = graph.produce(weight, 0, channels_out, output)
    _tie_groups(graph, out, groups)
    _tie_groups(graph, out, deformable_groups)  # Paddle wants a multiple here as well
    graph.set(output, Tracked.made(axis, out))


def _tie_groups(graph: ChannelGraph, ids: np.ndarray, groups: int) -> np.ndarray:
    """Make the n-th channels of all groups share their fate; returns the first group."""
    parts = ids.reshape(groups, -1)
    for part in parts[1:]:
        graph.tie(parts[0], part)
    return parts[0]


def _depthwise(
    graph: ChannelGraph, weight: str, ids: np.ndarray, multiplier: int, axis: int
) -> Tracked:
    graph.depthwise[graph.parameter_name(weight)] = multiplier
    out = np.repeat(ids, multiplier)
    graph.bind(weight, 0, out, makes=True)
    return Tracked.made(axis, out)


def transposed_convolution(graph: ChannelGraph, op: Op) -> None:
    """Like a convolution, but with the axes of its weight the other way round."""
    source, weight, output = op.input("Input"), op.input("Filter"), op.output("Output")
    axis, name = _channel_axis(op), graph.parameter_name(op.input("Filter"))
    if not name or int(op.attrs.get("groups", 1)) != 1:
        graph.freeze_inputs(op)
        return
    ids = _read(graph, source, axis, name)
    graph.bind(weight, 0, ids, makes=False)
    out = graph.produce(weight, 1, graph.shape(weight)[1], output)
    graph.set(output, Tracked.made(axis, out))


def matrix_product(graph: ChannelGraph, op: Op) -> None:
    """A linear layer: reads and makes the last axis."""
    source, weight, output = op.input("X"), op.input("Y"), op.output()
    name, rank = graph.parameter_name(weight), len(graph.shape(source))
    if not name or op.attrs.get("trans_x") or len(graph.shape(weight)) != 2:
        graph.freeze_inputs(op)
        return
    in_axis, out_axis = (1, 0) if op.attrs.get("trans_y") else (0, 1)
    ids = _read(graph, source, rank - 1, name)
    graph.bind(weight, in_axis, ids, makes=False)
    out = graph.produce(weight, out_axis, graph.shape(weight)[out_axis], output)
    graph.set(output, Tracked.made(len(graph.shape(output)) - 1, out))


def batch_norm(graph: ChannelGraph, op: Op) -> None:
    """Passes channels on; its scale, bias and statistics follow them."""
    source, scale = op.input("X"), op.input("Scale")
    tracked, axis, name = graph.get(source), _channel_axis(op), graph.parameter_name(scale)
    if tracked is not None and tracked.axis != axis:
        graph.freeze(tracked, f"'{name}' normalizes along another axis")
        tracked = None
    if tracked is None:
        ids = graph.fixed(graph.shape(scale)[0], f"'{name}' also normalizes fixed values")
    else:
        ids = tracked.ids
    for slot in ("Scale", "Bias", "Mean", "Variance"):
        graph.bind(op.input(slot), 0, ids, makes=True)
    producer = graph.producer_of(source)
    if producer is not None and not producer.batch_norm:
        producer.batch_norm = name
    graph.set(op.output("Y"), Tracked.made(axis, ids))


def same(graph: ChannelGraph, op: Op) -> None:
    """Maps every number by itself, and zero to zero."""
    graph.set(op.output(), graph.get(op.input("X")))


def gate(graph: ChannelGraph, op: Op) -> None:
    """Maps every number by itself, zero to another: a product with a zero channel restores it."""
    graph.set(op.output(), _without_zero(graph.get(op.input("X"))))


def _without_zero(tracked: Tracked | None) -> Tracked | None:
    return None if tracked is None else tracked.without_zero()


def scale(graph: ChannelGraph, op: Op) -> None:
    """Maps zero to zero where it adds nothing."""
    tracked = graph.get(op.input("X"))
    graph.set(op.output(), _without_zero(tracked) if op.attrs.get("bias") else tracked)


def clip(graph: ChannelGraph, op: Op) -> None:
    """Maps zero to zero where zero lies within its limits."""
    low, high = op.attrs.get("min", 0.0), op.attrs.get("max", 0.0)
    tracked = graph.get(op.input("X"))
    graph.set(op.output(), tracked if low <= 0.0 <= high else _without_zero(tracked))


def prelu(graph: ChannelGraph, op: Op) -> None:
    """Passes channels on; slopes of its own for each channel follow them."""
    tracked, alpha = graph.get(op.input("X")), op.input("Alpha")
    if tracked is not None and op.attrs.get("mode") == "channel":
        axis = int(np.argmax(graph.shape(alpha)))
        graph.bind(alpha, axis, tracked.ids, makes=True)
    elif tracked is not None and op.attrs.get("mode") != "all":
        graph.freeze_inputs(op)
    graph.set(op.output(), tracked)


def spatial(graph: ChannelGraph, op: Op) -> None:
    """Pooling and resizing: every channel for itself."""
    tracked = graph.get(op.input("X"))
    if tracked is not None and tracked.axis != _channel_axis(op):
        graph.freeze(tracked, f"operator '{op.type}' mixes its channels")
    graph.set(op.output(), tracked)


def pad(graph: ChannelGraph, op: Op) -> None:
    """Every channel for itself; zero stays zero where zeros are put around it."""
    tracked = graph.get(op.input("X"))
    spatial(graph, op)
    if float(op.attrs.get("value", op.attrs.get("pad_value", 0.0)) or 0.0) != 0.0:
        graph.set(op.output(), _without_zero(tracked))


def elementwise(graph: ChannelGraph, op: Op) -> None:
    """Ties the channels of two tensors; parameters and single channels are spread over many."""
    names = [op.input("X"), op.input("Y")]
    sides = [graph.get(name) for name in names]
    if sides[0] is None and sides[1] is None:
        graph.set(op.output(), None)
        return
    if op.type == "elementwise_div" and sides[1]:
        graph.freeze_inputs(op)
        return
    rank = max(len(graph.shape(name)) for name in names)
    result: Tracked | None = None
    for name, other, tracked in zip(names, reversed(names), sides):
        if tracked is not None:
            result = _with_other(graph, op, (name, tracked), other, result, rank)
    if result is None:
        graph.set(op.output(), None)
        return
    if names[1] in graph.biases or graph.parameter_name(names[1]):
        graph.follow(names[0], op.output())
    zero_kept = _zero_after(graph, op, result, rank)
    graph.set(op.output(), Tracked(result.axis, result.ids, zero_kept))


def _with_other(
    graph: ChannelGraph,
    op: Op,
    side: tuple[str, Tracked],
    other: str,
    result: Tracked | None,
    rank: int,
) -> Tracked | None:
    """Join one tracked operand with the other operand of an elementwise operator."""
    name, tracked = side
    axis = tracked.axis + _first_axis(graph, op, name, rank)
    position = axis - _first_axis(graph, op, other, rank)
    size = _size_on(graph, op, other, axis, rank)
    if len(tracked.ids) == 1 and size > 1:
        graph.freeze(tracked, "its one channel is spread over many")
        return result
    if result is not None and result.axis == axis:
        graph.tie(result.ids, tracked.ids)
        return result
    if result is not None:
        graph.freeze(tracked, f"operator '{op.type}' joins it along another axis")
        graph.freeze(result, f"operator '{op.type}' joins it along another axis")
        return result
    if size > 1 and graph.get(other) is None:
        if graph.parameter_name(other):
            graph.bind(other, position, tracked.ids, makes=True)
        else:
            graph.freeze(tracked, f"operator '{op.type}' joins it with values of fixed width")
    return tracked.moved(axis)


def _first_axis(graph: ChannelGraph, op: Op, variable: str, rank: int) -> int:
    """The axis of the result that an operand's first axis lies on."""
    missing, written = rank - len(graph.shape(variable)), int(op.attrs.get("axis", -1))
    return written if missing and written >= 0 else missing


def _size_on(graph: ChannelGraph, op: Op, variable: str, axis: int, rank: int) -> int:
    """Entries of an operand along an axis of the result; 1 where it is broadcast."""
    shape, position = graph.shape(variable), axis - _first_axis(graph, op, variable, rank)
    return shape[position] if 0 <= position < len(shape) else 1


def _zero_after(graph: ChannelGraph, op: Op, result: Tracked, rank: int) -> np.ndarray:
    """Which zeroed channels are still zero after the operator, bool [C]."""
    if len(result.ids) == 1:
        return np.ones(1, bool)  # the only channel of a layer is never cut
    zero, vectors = [], []
    for name in (op.input("X"), op.input("Y")):
        tracked = graph.get(name)
        if tracked is not None and len(tracked.ids) == len(result.ids):
            zero.append(tracked.zero_kept)
        else:
            zero.append(np.zeros(len(result.ids), bool))
        wide = _size_on(graph, op, name, result.axis, rank) > 1
        vectors.append(wide and bool(graph.parameter_name(name)))
    if op.type == "elementwise_mul":
        return zero[0] | zero[1]
    if op.type == "elementwise_div":
        return zero[0]
    return (zero[0] | vectors[0]) & (zero[1] | vectors[1])
