"""From a record to a model that simulates it and back, and what is an error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import Conv2D

from slim_det.compress.quantize.layers import QuantConv2D
from slim_det.compress.quantize.model import (
    keep_float,
    quantize_model,
    quantized_layers,
    ranges_of,
    signed_inputs,
)
from slim_det.compress.quantize.quantizers import ObservedRange, SharedRange
from slim_det.compress.quantize.record import QuantLayer, record_of
from slim_det.core.errors import QuantError
from tests.compress.quantize.nets import (
    RANGES,
    Net,
    make_net,
    make_quantized,
    make_record,
    picture,
    state_of,
)
from tests.support import trace_plain

LIMITS = {"stem.0.activation.limit", "left.activation.limit"}


def same_values(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[n], right[n]) for n in left)


def assert_float(net: Net, state: dict[str, np.ndarray], out: np.ndarray) -> None:
    """A net that nothing has been done to."""
    assert record_of(net) is None and quantized_layers(net) == {}
    assert not any(isinstance(layer, QuantConv2D) for layer in net.sublayers())
    assert same_values(state_of(net), state)
    assert np.array_equal(net(picture()).numpy(), out)


def test_record_without_layers() -> None:
    """It is a record all the same; the net computes what it did."""
    net, record = make_net(), replace(make_record(), layers=[])
    out = net(picture()).numpy()
    quantize_model(net, record)
    assert record_of(net) is record and quantized_layers(net) == {} and ranges_of(net) == {}
    assert np.array_equal(net(picture()).numpy(), out)


def test_convolutions_are_quantized_where_they_are() -> None:
    """Only those of the record; lists that the model keeps beside its sublayers see it too."""
    net, record = make_net(), make_record()
    convolutions = [net.stem[0], net.left, net.middle, net.right]
    out = net(picture()).numpy()
    quantize_model(net, record, {"stem": 3.0, "left": 12.0})
    assert record_of(net) is record
    assert list(quantized_layers(net)) == ["stem", "left", "middle", "right"]
    assert list(quantized_layers(net).values()) == convolutions
    assert all(type(layer) is QuantConv2D for layer in (*convolutions, *net.branches))
    assert type(net.output) is Conv2D
    assert net.stem[0].norm is net.stem[1] and net.left.norm is None
    found = net(picture()).numpy()
    assert not np.array_equal(found, out)
    assert np.allclose(found, out, atol=0.05 * np.abs(out).max())


def test_state_has_the_names_of_the_float_model_and_input_ranges() -> None:
    """One for those that read the same tensor; weights are untouched."""
    before, net = state_of(make_net()), make_quantized()
    after = state_of(net)
    assert set(after) == {*before, *LIMITS}
    assert same_values({name: after[name] for name in before}, before)
    names = [name for name, _ in net.named_parameters()]
    assert len(names) == len(set(names)) and set(names) == set(after)


def test_ranges_to_begin_with() -> None:
    """From a calibration, or 1; never zero, whatever the calibration has seen."""
    net = make_net()
    quantize_model(net, make_record(), {"left": 0.0})
    scales = ranges_of(net)
    assert scales["stem.0.weight"].input_range == 1
    assert 0 < scales["left.weight"].input_range <= 1e-8


@pytest.mark.parametrize(
    ("settings", "rate", "per_batch", "per_channel", "bits"),
    [
        ({}, 0.9, False, True, (8, 8)),
        (
            {"activation_type": "abs_max", "weight_type": "abs_max", "moving_rate": 0.5},
            *(0.5, True, False, (8, 8)),
        ),
        ({"weight_bits": 4, "activation_bits": 15}, 0.9, False, True, (4, 15)),
    ],
)
def test_settings_reach_every_layer(
    settings: dict[str, Any], rate: float, per_batch: bool, per_channel: bool, bits: tuple
) -> None:
    net = make_quantized(**settings)
    for layer in quantized_layers(net).values():
        source = getattr(layer.activation, "source", layer.activation)
        assert (source.rate, source.per_batch) == (rate, per_batch)
        assert layer.weights.per_channel is per_channel
        assert layer.weights.bits == bits[0]
        # One more where a ReLU makes the input; the engine adds it by itself.
        assert source.bits == bits[1] + (layer is not net.stem[0])
    assert all((s.weight_bits, s.activation_bits) == bits for s in ranges_of(net).values())


@pytest.mark.parametrize("training", [True, False])
def test_quantizers_are_in_the_mode_of_the_model(training: bool) -> None:
    net = make_net()
    net.train() if training else net.eval()
    quantize_model(net, make_record(), RANGES)
    net(picture() * 100)
    assert (net.left.activation.range() != RANGES["left"]) is training
    assert (net.stem[0].activation.range() != RANGES["stem"]) is training


def test_shared_range_moves_once_a_step() -> None:
    """0.9 of 3 and a tenth of the largest value that the three branches read."""
    net = make_quantized()
    seen = []
    net.left.register_forward_pre_hook(lambda layer, inputs: seen.append(float(inputs[0].max())))
    net.train()
    net(picture())
    ranges = [layer.activation.range() for layer in net.branches]
    assert ranges == pytest.approx([0.9 * 3 + 0.1 * seen[0]] * 3)


def test_quantized_twice() -> None:
    """An error, and the model simulates on as before."""
    net = make_quantized()
    record, state, out = record_of(net), state_of(net), net(picture()).numpy()
    with pytest.raises(QuantError, match="the model is quantized already; start from float"):
        quantize_model(net, make_record(weight_bits=2), {"stem": 9.0})
    assert record_of(net) is record and same_values(state_of(net), state)
    assert np.array_equal(net(picture()).numpy(), out)


@pytest.mark.parametrize(
    ("layer", "phrase"),
    [
        (QuantLayer("neck.tip"), "it has no convolution 'neck.tip'"),
        (QuantLayer("stem.1"), "it has no convolution 'stem.1'"),
        (QuantLayer(""), "it has no convolution ''"),
        (QuantLayer("output", "bn"), "it has no convolution 'output' with batch norm 'bn'"),
        (QuantLayer("output", "left"), "'output' with batch norm 'left'"),
    ],
    ids=["no layer", "a norm", "no name", "no norm", "a norm that is a convolution"],
)
def test_record_of_another_model(layer: QuantLayer, phrase: str) -> None:
    """Found before anything is done, though the layer stands at the end."""
    net, record = make_net(), make_record()
    state, out = state_of(net), net(picture()).numpy()
    with pytest.raises(QuantError) as caught:
        quantize_model(net, replace(record, layers=[*record.layers, layer]), RANGES)
    message = str(caught.value)
    assert message.startswith("the quantization record belongs to another model: ")
    assert phrase in message and "\n" not in message
    assert_float(net, state, out)


def test_kept_in_float() -> None:
    net = make_quantized()
    origin = record_of(net).origin
    keep_float(net, ["stem"], "it costs 2 AP")
    record = record_of(net)
    assert type(net.stem[0]) is Conv2D
    assert [layer.name for layer in record.layers] == ["left", "middle", "right"]
    assert record.kept_float == {**make_record().kept_float, "stem": "it costs 2 AP"}
    assert record.origin == origin
    assert set(state_of(net)) == {*state_of(make_net()), "left.activation.limit"}
    assert list(ranges_of(net)) == ["left.weight", "middle.weight", "right.weight"]


def test_nothing_kept_in_float() -> None:
    net = make_quantized()
    record, out = record_of(net), net(picture()).numpy()
    keep_float(net, [], "")
    assert record_of(net) == record and np.array_equal(net(picture()).numpy(), out)


@pytest.mark.parametrize(
    ("names", "owner", "followers"),
    [
        (["left"], "middle", ["right"]),
        (["left", "middle"], "right", []),
        (["middle"], "left", ["right"]),
    ],
)
def test_heir_of_a_shared_range(names: list[str], owner: str, followers: list[str]) -> None:
    """The next that reads the tensor owns the range, of the same value; it moves once a step."""
    net = make_quantized()
    keep_float(net, names, "for a test")
    layers = quantized_layers(net)
    assert [layer.name for layer in record_of(net).layers] == ["stem", owner, *followers]
    assert [layer.shares for layer in record_of(net).layers] == ["", "", *[owner] * len(followers)]
    assert type(layers[owner].activation) is ObservedRange
    assert all(type(layers[name].activation) is SharedRange for name in followers)
    assert {layers[name].activation.range() for name in (owner, *followers)} == {RANGES["left"]}
    limits = {"stem.0.activation.limit", f"{owner}.activation.limit"}
    assert set(state_of(net)) == {*state_of(make_net()), *limits}
    net.train()
    net(picture())
    moved = layers[owner].activation.range()
    assert moved != RANGES["left"]
    assert all(layers[name].activation.range() == moved for name in followers)


def test_heir_of_an_heir() -> None:
    """One after the other gives what both at once give."""
    net, other = make_quantized(), make_quantized()
    for name in ("left", "middle"):
        keep_float(net, [name], "for a test")
    keep_float(other, ["left", "middle"], "for a test")
    assert record_of(net) == record_of(other)
    assert same_values(state_of(net), state_of(other))
    assert np.array_equal(net(picture()).numpy(), other(picture()).numpy())


def test_record_of_what_is_left_gives_the_same_model() -> None:
    """As a checkpoint does: a float model, this record, this state."""
    net = make_quantized()
    keep_float(net, ["left"], "for a test")
    again = make_net(seed=1)
    quantize_model(again, record_of(net))
    again.set_state_dict(net.state_dict())
    assert same_values(state_of(again), state_of(net))
    assert np.array_equal(again(picture()).numpy(), net(picture()).numpy())


def test_all_put_back_is_the_float_model_bit_for_bit() -> None:
    float_net, net = make_net(), make_quantized()
    keep_float(net, ["right", "stem", "left", "middle"], "for a test")
    assert same_values(state_of(net), state_of(float_net))
    assert np.array_equal(net(picture()).numpy(), float_net(picture()).numpy())
    assert record_of(net).layers == [] and len(record_of(net).kept_float) == 5


def test_float_model_has_nothing_to_put_back_and_no_scales() -> None:
    net = make_net()
    for call in (lambda: keep_float(net, ["stem"], ""), lambda: ranges_of(net)):
        with pytest.raises(QuantError, match="the model is not quantized"):
            call()


@pytest.mark.parametrize("name", ["output", "neck.tip"])
def test_only_what_is_quantized_can_be_put_back(name: str) -> None:
    """An error that names it, and nothing is put back."""
    net = make_quantized()
    record = record_of(net)
    with pytest.raises(QuantError, match=f"'{name}'"):
        keep_float(net, ["stem", name], "for a test")
    assert record_of(net) is record and type(net.stem[0]) is QuantConv2D


def test_traced_model_is_the_float_one() -> None:
    """The integers are written by the export; the simulation goes on behind it."""
    float_net, net = make_net(), make_quantized()
    out = net(picture()).numpy()
    traces = [trace_plain(model, 1, 2, 6, 6) for model in (float_net, net)]
    left, right = ([(op.type, op.attrs) for op in trace.ops] for trace in traces)
    assert left == right
    weights = [{n for n in trace.parameters.values() if n not in LIMITS} for trace in traces]
    assert weights[0] == weights[1]
    assert np.array_equal(net(picture()).numpy(), out)


def test_signed_inputs() -> None:
    """As a model that was told so from the start, for a while only."""
    net, signed = make_quantized(), make_quantized(unsigned_inputs=False)
    assert signed.left.activation.bits == 8 and net.left.activation.bits == 9
    state, out = state_of(net), net(picture()).numpy()
    with signed_inputs(net):
        found = net(picture()).numpy()
    assert np.array_equal(found, signed(picture()).numpy()) and not np.array_equal(found, out)
    assert np.array_equal(net(picture()).numpy(), out)
    with pytest.raises(KeyError, match="for a test"), signed_inputs(net):
        raise KeyError("for a test")
    assert same_values(state_of(net), state)
    assert np.array_equal(net(picture()).numpy(), out)


def test_signed_inputs_of_a_float_model() -> None:
    with pytest.raises(QuantError, match="not quantized"), signed_inputs(make_net()):
        pass


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales(per_channel: bool) -> None:
    """By the name of the weight; those of the folded one: 4 -1 0.5 2, over the root of 3."""
    net = make_net()
    weight = np.zeros((4, 2, 3, 3), "float32")
    weight[:, 0, 1, 1] = [1, -2, 3, 0.5]
    net.stem[0].weight.set_value(weight)
    net.left.weight.set_value(np.full((2, 4, 1, 1), -0.75, "float32"))
    quantize_model(
        net, make_record(weight_type="channel_wise_abs_max" if per_channel else "abs_max"), RANGES
    )
    scales = ranges_of(net)
    assert list(scales) == ["stem.0.weight", "left.weight", "middle.weight", "right.weight"]
    folded = np.array([4, 2, 1.5, 1]) / 3**0.5
    truth = folded if per_channel else folded[:1]
    assert scales["stem.0.weight"].weight_ranges == pytest.approx(truth, rel=1e-4)
    assert scales["left.weight"].weight_ranges == pytest.approx(
        [0.75, 0.75] if per_channel else [0.75]
    )
    assert [s.input_range for s in scales.values()] == [2, 3, 3, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
def test_lost_scales(value: float) -> None:
    net = make_quantized()
    net.left.activation.limit.set_value(np.array([value], "float32"))
    with pytest.raises(
        QuantError, match=r"'left' has lost its scales \(input range .*\); expected"
    ):
        ranges_of(net)


def test_lost_weight() -> None:
    net = make_quantized()
    paddle.assign(paddle.full_like(net.right.weight, float("nan")), net.right.weight)
    with pytest.raises(QuantError, match="'right' has lost its scales"):
        ranges_of(net)
