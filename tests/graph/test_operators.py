"""One entry is all that an operator needs: readers of the table treat invented ones by it.

Edits of programs are in `test_operators_of_programs.py`, values in `test_operator_values.py`.
"""

from __future__ import annotations

import paddle
import pytest
from paddle.base.framework import OpProtoHolder

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.residual_fusion import rounded_tensors
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from slim_det.graph import channel_rules
from slim_det.graph.channels import ChannelGraph, Tracked
from slim_det.graph.cost import macs_by_parameter
from slim_det.graph.mac_rules import each_output_pixel
from slim_det.graph.op import Op
from slim_det.graph.operators import OPERATORS, Operator, fused_activations
from slim_det.graph.program import last_convolutions
from slim_det.graph.trace import Trace
from slim_det.planning.profile.shapes import ConvShape, conv_shapes
from slim_det.planning.sensitivity.candidates import make_targets
from slim_det.planning.sensitivity.partial_inference import mask_name

SHAPES = {
    "image": (1, 3, 8, 8),
    "kernel": (4, 3, 1, 1),
    "other": (4, 4, 1, 1),
    "last": (4, 4, 1, 1),
    **dict.fromkeys(["made", "active", "pooled", "again", "more", "sum"], (1, 4, 8, 8)),
}


def rule(graph: ChannelGraph, op: Op) -> Tracked:
    """Makes fresh channels and reads those of its input."""
    source = graph.channels.get(op.input("From"))
    weight, result = op.input("Kernel"), op.output("Made")
    if source is not None:
        graph.bind(weight, 1, source.ids, makes=False)
    return Tracked.made(1, graph.produce(weight, 0, result))


ENTRIES = {
    "mix": Operator(
        rule, each_output_pixel, data="From", weight="Kernel", result="Made", int8_kernel=True
    ),
    "bend": Operator(channel_rules.same, fused=True, fused_int8=True, unsigned=True),
    "pick": Operator(channel_rules.same, keeps_range=lambda op: True, reads_integers=True),
}


class Net(paddle.nn.Layer):
    """Holds the weights that the trace below names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 4, 1, bias_attr=False)
        self.second = paddle.nn.Conv2D(4, 4, 1, bias_attr=False)
        self.third = paddle.nn.Conv2D(4, 4, 1, bias_attr=False)


def mixing(source: str, weight: str, result: str) -> Op:
    attrs = {"strides": [1, 1], "paddings": [0, 0]}
    return Op("mix", {"From": [source], "Kernel": [weight]}, {"Made": [result]}, attrs)


@pytest.fixture
def trace() -> Trace:
    """image -> mix -> bend -> pick -> mix, whose result is added to that of `bend`."""
    ops = [
        mixing("image", "kernel", "made"),
        Op("bend", {"X": ["made"]}, {"Out": ["active"]}, {}),
        Op("pick", {"X": ["active"]}, {"Out": ["pooled"]}, {}),
        mixing("pooled", "other", "again"),
        Op("elementwise_add", {"X": ["again"], "Y": ["active"]}, {"Out": ["sum"]}, {}),
    ]
    parameters = {"kernel": "first.weight", "other": "second.weight", "last": "third.weight"}
    return Trace(ops, SHAPES, parameters, ["sum"], None)


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, operator in ENTRIES.items():
        monkeypatch.setitem(OPERATORS, kind, operator)


def test_unknown_operators(trace: Trace) -> None:
    """They cost nothing, are not quantized, and their inputs cannot be cut."""
    assert macs_by_parameter(trace) == {} and conv_shapes(trace) == []
    assert find_groups(Net(), trace).groups == {} and last_convolutions(trace.ops) == []
    with pytest.raises(QuantError, match="nothing to quantize"):
        find_quantizable_layers(Net(), trace, QuantSettings())
    known = Op("conv2d", {"Input": ["image"], "Filter": ["kernel"]}, {"Output": ["made"]}, {})
    frozen = Trace([known, *trace.ops[1:]], SHAPES, trace.parameters, ["sum"], None)
    (group,) = find_groups(Net(), frozen).groups.values()
    assert group.reasons == (
        "it is read by operator 'bend', for which no channel rule is declared",
    )


@pytest.mark.usefixtures("declared")
def test_channels_and_macs(trace: Trace) -> None:
    uncut = Trace(trace.ops[:-1], SHAPES, trace.parameters, ["again"], None)
    groups = find_groups(Net(), uncut)
    assert groups.groups["first"].prunable and groups.groups["first"].channels == 4
    reading = [(axis.parameter, axis.axis) for axis in groups.axes if not axis.makes]
    assert reading == [("second.weight", 1)]
    assert macs_by_parameter(trace) == {"first.weight": 64 * 12, "second.weight": 64 * 16}
    after_cut = macs_by_parameter(trace, {"second.weight": (4, 2, 1, 1)})
    assert after_cut == {"first.weight": 64 * 12, "second.weight": 64 * 8}


@pytest.mark.usefixtures("declared")
def test_sensitivity(trace: Trace) -> None:
    """A cut masks the weight in the weight slot."""
    uncut = Trace(trace.ops[:-1], SHAPES, trace.parameters, ["again"], None)
    net = Net()
    pruner = Pruner(pruned_ratios=0.5)
    (target,) = make_targets(net, uncut, find_groups(net, uncut), ["first"], [0.5], pruner)
    assert target.readers == ("other",) and target.macs == 64 * 16
    assert target.cuts[0].masks[mask_name("other")].sum() == 2
    assert target.cuts[0].masks[mask_name("other")].shape == (1, 4, 1, 1)


@pytest.mark.usefixtures("declared")
def test_quantization(trace: Trace) -> None:
    """All are quantized; a picked tensor shares the range and sign of another layer's input."""
    found = find_quantizable_layers(Net(), trace, QuantSettings())
    assert [layer.name for layer in found.layers] == ["first", "second"] and not found.kept_float
    assert [layer.unsigned for layer in found.layers] == [False, False]
    trace.ops.append(mixing("active", "last", "more"))
    found = find_quantizable_layers(Net(), trace, QuantSettings())
    assert [layer.name for layer in found.layers] == ["first", "second", "third"]
    assert [layer.unsigned for layer in found.layers] == [False, True, True]
    assert [layer.shares for layer in found.layers] == ["", "", "second"]


@pytest.mark.usefixtures("declared")
def test_residual_fusion(trace: Trace) -> None:
    """`bend` is part of the kernel before it, which therefore writes the input of the addition."""
    outputs = {"made": "first", "again": "second"}
    found = rounded_tensors(trace, {"first": "image", "second": "active"}, outputs)
    assert found == {"active": (["second"], ["first"])}
    OPERATORS["bend"] = Operator(channel_rules.same)
    OPERATORS["pick"] = Operator(channel_rules.same)
    assert rounded_tensors(trace, {"first": "image", "second": "active"}, outputs) == {}
    OPERATORS["pick"] = ENTRIES["pick"]  # a reader of integers does not prevent it
    found = rounded_tensors(trace, {"first": "image", "second": "active"}, outputs)
    assert found == {"active": (["second"], ["second"])}


@pytest.mark.usefixtures("declared")
def test_latency_table_and_head(trace: Trace) -> None:
    inner = Trace(trace.ops[:2], SHAPES, trace.parameters, ["active"], None)
    assert conv_shapes(inner) == [("first.weight", ConvShape(3, 4, 8, 8, 1, act="bend"))]
    assert "bend" in fused_activations() and "pick" not in fused_activations()
    assert last_convolutions(trace.ops) == [trace.ops[3]]


@pytest.mark.parametrize("kind", sorted(OPERATORS.keys() - {"sync_batch_norm"}))
def test_slots_are_those_of_paddle(kind: str) -> None:
    """Of each entry but one: a build of Paddle without CUDA has no `sync_batch_norm`."""
    proto, operator = OpProtoHolder.instance().get_op_proto(kind), OPERATORS[kind]
    inputs, outputs = ({slot.name for slot in slots} for slots in (proto.inputs, proto.outputs))
    named = {operator.data, operator.weight, operator.bias, *operator.sampling} - {""}
    assert named <= inputs and operator.result in outputs
    assert operator.weight or operator.macs is None
    assert operator.macs is not None or not operator.int8_kernel
