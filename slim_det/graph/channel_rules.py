"""Rules of operators that compute: how each one moves channel identities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slim_det.graph.channels import ChannelGraph, Tracked, of_one_input, unknown
from slim_det.graph.op import Op


def reads_only_shapes(graph: ChannelGraph, op: Op) -> None:
    """Its output depends only on the shape of its input, which is traced again after a cut."""


def _channel_axis(op: Op) -> int:
    layout = op.attrs.get("data_format") or op.attrs.get("data_layout")
    return 3 if layout == "NHWC" else 1


def _read(graph: ChannelGraph, variable: str, axis: int, reader: str) -> np.ndarray:
    """Identities on the axis that a layer reads; freezes those that cannot be cut."""
    tracked = graph.channels.get(variable)
    if tracked is not None and tracked.axis != axis:
        graph.freeze(tracked, f"'{reader}' reads its channels along another axis")
        tracked = None
    if tracked is None:
        return graph.fixed(graph.shapes[variable][axis], f"'{reader}' also reads fixed values")
    lost = tracked.ids[~tracked.zero_kept]
    if len(lost):
        graph.frozen.append((lost, f"'{reader}' reads it where a zeroed channel is not zero"))
    return tracked.ids


def convolution(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Gives its output channels new identities and those of its input to its weight."""
    source, weight = op.input("Input"), op.input("Filter")
    axis, groups = _channel_axis(op), int(op.attrs.get("groups", 1))
    deformable_groups = int(op.attrs.get("deformable_groups", 1))
    name = graph.parameter_name(weight)
    if not name:
        return unknown(graph, op)
    for slot in ("Offset", "Mask"):
        graph.freeze(
            graph.channels.get(op.input(slot)), f"it holds the sampling offsets of '{name}'"
        )
    ids = _read(graph, source, axis, name)
    _tie_groups(graph, ids, deformable_groups)
    if groups > 1 and groups == graph.shapes[source][axis]:
        return _depthwise(graph, weight, ids, axis)
    graph.bind(weight, 1, _tie_groups(graph, ids, groups), makes=False)
    out = graph.produce(weight, 0, op.output("Output"))
    _tie_groups(graph, out, groups)
    _tie_groups(graph, out, deformable_groups)  # Paddle wants a multiple here as well
    return Tracked.made(axis, out)


def _tie_groups(graph: ChannelGraph, ids: np.ndarray, groups: int) -> np.ndarray:
    """Make the n-th channels of all groups be cut together; returns the first group."""
    parts = ids.reshape(groups, -1)
    for part in parts[1:]:
        graph.tie(parts[0], part)
    return parts[0]


def _depthwise(graph: ChannelGraph, weight: str, ids: np.ndarray, axis: int) -> Tracked:
    multiplier = graph.shapes[weight][0] // len(ids)
    graph.depthwise[graph.parameter_name(weight)] = multiplier
    out = np.repeat(ids, multiplier)
    graph.bind(weight, 0, out, makes=True)
    return Tracked.made(axis, out)


def transposed_convolution(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Like a convolution, but with the axes of its weight the other way round."""
    source, weight, axis = op.input("Input"), op.input("Filter"), _channel_axis(op)
    name, groups = graph.parameter_name(weight), int(op.attrs.get("groups", 1))
    is_depthwise = groups == graph.shapes[source][axis] and graph.shapes[weight][1] == 1
    if not name or (groups > 1 and not is_depthwise):
        return unknown(graph, op)
    ids = _read(graph, source, axis, name)
    if groups > 1:
        return _depthwise(graph, weight, ids, axis)
    graph.bind(weight, 0, ids, makes=False)
    return Tracked.made(axis, graph.produce(weight, 1, op.output("Output")))


def matrix_product(graph: ChannelGraph, op: Op) -> Tracked | None:
    """A linear layer: reads and makes the last axis."""
    source, weight, output = op.input("X"), op.input("Y"), op.output()
    name = graph.parameter_name(weight)
    if not name or op.attrs.get("trans_x") or len(graph.shapes[weight]) != 2:
        return unknown(graph, op)
    in_axis, out_axis = (1, 0) if op.attrs.get("trans_y") else (0, 1)
    ids = _read(graph, source, len(graph.shapes[source]) - 1, name)
    graph.bind(weight, in_axis, ids, makes=False)
    out = graph.produce(weight, out_axis, output)
    return Tracked.made(len(graph.shapes[output]) - 1, out)


def batch_norm(graph: ChannelGraph, op: Op) -> Tracked:
    """Passes channels on; its scale, bias and statistics follow them."""
    source, name = op.input("X"), graph.parameter_name(op.input("Scale"))
    ids = _normalized(graph, op, name)
    for slot in ("Scale", "Bias", "Mean", "Variance"):
        graph.bind(op.input(slot), 0, ids, makes=True)
    producer = graph.made_by.get(source)
    if producer is not None and not producer.batch_norm:
        producer.batch_norm, producer.shift = name, graph.parameter_name(op.input("Bias"))
    return Tracked.made(_channel_axis(op), ids)


def group_norm(graph: ChannelGraph, op: Op) -> Tracked:
    """Passes channels on; those that share a mean and a variance are cut together."""
    ids = _normalized(graph, op, graph.parameter_name(op.input("Scale")) or op.type)
    parts = ids.reshape(int(op.attrs["groups"]), -1)
    for place in range(1, parts.shape[1]):
        graph.tie(parts[:, 0], parts[:, place])
    for slot in ("Scale", "Bias"):
        if graph.parameter_name(op.input(slot)):
            graph.bind(op.input(slot), 0, ids, makes=True)
    return Tracked.made(_channel_axis(op), ids)


def _normalized(graph: ChannelGraph, op: Op, name: str) -> np.ndarray:
    """Identities of the channels that a layer normalizes; freezes those that cannot be cut."""
    tracked, axis = graph.channels.get(op.input("X")), _channel_axis(op)
    if tracked is not None and tracked.axis == axis:
        return tracked.ids
    graph.freeze(tracked, f"'{name}' normalizes along another axis")
    return graph.fixed(graph.shapes[op.input("X")][axis], f"'{name}' also normalizes fixed values")


@of_one_input
def same(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Maps every number by itself, and zero to zero."""
    return tracked


@of_one_input
def gate(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Maps every number by itself, but not zero to zero; a product with a zero channel is zero."""
    return tracked.without_zero()


@of_one_input
def scale(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Maps zero to zero if it adds nothing."""
    return tracked.without_zero() if op.attrs.get("bias") else tracked


@of_one_input
def clip(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Maps zero to zero if zero lies within its limits."""
    low, high = op.attrs.get("min", 0.0), op.attrs.get("max", 0.0)
    return tracked if low <= 0.0 <= high else tracked.without_zero()


@of_one_input
def prelu(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Passes channels on; slopes for each channel follow them."""
    alpha, mode = op.input("Alpha"), op.attrs.get("mode")
    if mode == "channel":
        graph.bind(alpha, int(np.argmax(graph.shapes[alpha])), tracked.ids, makes=True)
    elif mode != "all":
        unknown(graph, op)
    return tracked


@of_one_input
def spatial(graph: ChannelGraph, op: Op, tracked: Tracked) -> Tracked:
    """Pooling and resizing: every channel for itself."""
    if tracked.axis != _channel_axis(op):
        graph.freeze(tracked, f"operator '{op.type}' mixes its channels")
    return tracked


def pad(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Every channel for itself; zero stays zero if the border is zero."""
    tracked = spatial(graph, op)
    border = op.attrs.get("value", op.attrs.get("pad_value"))
    return tracked.without_zero() if tracked and border else tracked


@dataclass(frozen=True)
class _Operand:
    """One tensor of an elementwise operator; its first axis is axis ``first`` of the result."""

    name: str
    shape: tuple[int, ...]
    first: int
    tracked: Tracked | None

    def size_on(self, axis: int) -> int:
        """Entries along an axis of the result; 1 if it is broadcast."""
        position = axis - self.first
        return self.shape[position] if 0 <= position < len(self.shape) else 1


def elementwise(graph: ChannelGraph, op: Op) -> Tracked | None:
    """Ties the channels of two tensors; parameters and single channels are spread over many."""
    left, right = operands = _operands(graph, op)
    if op.type == "elementwise_div" and right.tracked:
        return unknown(graph, op)
    result = _joined(graph, op, left, right, None)
    result = _joined(graph, op, right, left, result)
    if result is None:
        return None
    bias = graph.biases.get(right.name) or graph.parameter_name(right.name)
    if bias and left.name in graph.made_by:
        producer = graph.made_by[op.output()] = graph.made_by[left.name]
        if op.type in ("elementwise_add", "elementwise_sub"):
            producer.bias = producer.bias or bias
    return Tracked(result.axis, result.ids, _zero_after(graph, op, operands, result))


def _operands(graph: ChannelGraph, op: Op) -> tuple[_Operand, _Operand]:
    names = (op.input("X"), op.input("Y"))
    rank = max(len(graph.shapes[name]) for name in names)
    written = int(op.attrs.get("axis", -1))

    def operand(name: str) -> _Operand:
        shape = graph.shapes[name]
        missing = rank - len(shape)
        first = written if missing and written >= 0 else missing
        return _Operand(name, shape, first, graph.channels.get(name))

    return operand(names[0]), operand(names[1])


def _joined(
    graph: ChannelGraph, op: Op, operand: _Operand, other: _Operand, result: Tracked | None
) -> Tracked | None:
    """Join the channels of one operand with the other, and with those of the result so far."""
    tracked = operand.tracked
    if tracked is None:
        return result
    axis = tracked.axis + operand.first
    size = other.size_on(axis)
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
    if size > 1 and other.tracked is None:
        if graph.parameter_name(other.name):
            graph.bind(other.name, axis - other.first, tracked.ids, makes=True)
        else:
            graph.freeze(tracked, f"operator '{op.type}' joins it with values of fixed width")
    return tracked.moved(axis)


def _zero_after(
    graph: ChannelGraph, op: Op, operands: tuple[_Operand, _Operand], result: Tracked
) -> np.ndarray:
    """Which zeroed channels are still zero after the operator, bool [C]."""
    count = len(result.ids)
    if count == 1:
        return np.ones(1, bool)  # the only channel of a layer is never cut
    zero, vectors = [], []
    for operand in operands:
        tracked = operand.tracked
        if tracked is not None and len(tracked.ids) == count:
            zero.append(tracked.zero_kept)
        else:
            zero.append(np.zeros(count, bool))
        is_parameter = bool(graph.parameter_name(operand.name))
        vectors.append(is_parameter and operand.size_on(result.axis) > 1)
    if op.type == "elementwise_mul":
        return zero[0] | zero[1]
    if op.type == "elementwise_div":
        return zero[0]
    return (zero[0] | vectors[0]) & (zero[1] | vectors[1])
